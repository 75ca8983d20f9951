"""Contradictions between the settings of evaluation and of judges, found before anything starts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from shard_dist.config.schema import Backend, Config, RaterConfig, RaterKind

OWN_ARMS = ("base", "tuned", "differences", "documents")  # the last two have places of their own in metrics.json
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # names of arms and judges become names of files and of metrics
WORD_RULES = (RaterKind.rule_helpfulness, RaterKind.rule_harm)
GUARDS_WITH_THRESHOLD = (RaterKind.llama_guard, RaterKind.shieldgemma)
# Those that are asked by templates of the set.
RUBRICS = (
    RaterKind.helpfulness,
    RaterKind.harmlessness,
    RaterKind.strongreject,
    RaterKind.xstest,
    RaterKind.do_not_answer,
)


def roles(config: Config) -> dict[str, str]:
    """Role -> the setting that needs it, of arms and judges of single answers."""
    arms = {role: f"evaluate.arms.{name}" for name, role in config.evaluate.arms.items()}
    raters = {
        rater.role: f"{stage}.raters[{index}].role"
        for stage, given in (("evaluate", config.evaluate.raters), ("select", config.select.raters))
        for index, rater in enumerate(given)
        if rater.role
    }
    return {**arms, **raters}


def steps(raters: Iterable[RaterConfig]) -> list[str]:
    """Templates that they need."""
    return [f"rate_{rater.kind}" for rater in raters if rater.kind in RUBRICS]


def check_evaluate(config: Config) -> None:
    evaluate = config.evaluate
    if not 0 < evaluate.confidence < 1:
        raise ValueError(f"evaluate.confidence is {evaluate.confidence}; a share in (0, 1)")
    for name in evaluate.arms:
        if name in OWN_ARMS or not NAME.fullmatch(name):
            taken = ", ".join(OWN_ARMS)
            raise ValueError(f"evaluate.arms: {name!r} cannot name an arm; letters, digits, _ . - and not {taken}")
    _check_raters("evaluate.raters", evaluate.raters)
    _check_raters("select.raters", config.select.raters)
    for path in evaluate.agreement:
        if not Path(path).is_file():
            raise ValueError(f"evaluate.agreement: no file {path!r}; `shard-dist judge-bench FILE --out` makes one")
    _check_capability(config)


def _check_raters(where: str, raters: list[RaterConfig]) -> None:
    for index, rater in enumerate(raters):
        _check_rater(f"{where}[{index}]", rater)
    names = ["refusal", *(rater.name or str(rater.kind) for rater in raters)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{where}: two judges are called {name!r}; give one another `name`")
        if not NAME.fullmatch(name):
            raise ValueError(f"{where}: {name!r} cannot be a judge's name; letters, digits, _ . - only")


def _check_rater(where: str, rater: RaterConfig) -> None:
    if rater.kind == RaterKind.refusal:
        raise ValueError(f"{where}: the refusal rules judge every answer anyway; drop this entry")
    if rater.kind in WORD_RULES and rater.role:
        raise ValueError(f"{where}.role: {rater.kind} is no model; drop the role")
    if rater.kind not in WORD_RULES and not rater.role:
        raise ValueError(f"{where}.role: {rater.kind} is a model; name its role of `models`")
    if rater.version not in ("", "1", "2", "3", "4"):
        raise ValueError(f"{where}.version is {rater.version!r}; 1, 2, 3 or 4")
    if not 0 < rater.threshold < 1:
        raise ValueError(f"{where}.threshold is {rater.threshold}; a probability in (0, 1)")
    unused = {
        "version": rater.version and rater.kind != RaterKind.llama_guard,
        "policies": rater.policies and rater.kind != RaterKind.shieldgemma,
        "threshold": rater.threshold != RaterConfig.threshold and rater.kind not in GUARDS_WITH_THRESHOLD,
    }
    for name in (name for name, given in unused.items() if given):
        warnings.warn(f"{where}.{name} has no effect with kind {rater.kind}", stacklevel=4)


def _check_capability(config: Config) -> None:
    where, capability = "evaluate.capability", config.evaluate.capability
    if capability.text and not Path(capability.text).is_file():
        raise ValueError(f"{where}.text: no file {capability.text!r} (from {Path.cwd()})")
    if capability.documents < 1:
        raise ValueError(f"{where}.documents is {capability.documents}; at least 1")
    if capability.lm_eval_args and not capability.lm_eval:
        warnings.warn(f"{where}.lm_eval_args has no effect without lm_eval", stacklevel=4)
    if capability.lm_eval and find_spec("lm_eval") is None:
        raise ValueError(f"{where}.lm_eval: lm-evaluation-harness is not installed here: pip install lm-eval")
    for name, role in config.evaluate.arms.items():
        behind_http = role in config.models and config.models[role].backend == Backend.http
        if behind_http and (capability.lm_eval or capability.text):
            warnings.warn(f"{where}: arm {name} is behind http and takes no part in it", stacklevel=4)
