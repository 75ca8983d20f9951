"""Contradictions between settings, found before anything starts."""

from __future__ import annotations

import warnings
from pathlib import Path

from shard_dist.config.schema import Backend, Config, JudgeKind, ModelConfig, SourceConfig, SourceKind
from shard_dist.prompts.render import Templates

KINDS_WITH_A_HUB_ID = (SourceKind.do_not_answer, SourceKind.linguasafe)


def check(config: Config) -> None:
    """Raise ValueError for the first contradiction, naming its keys; warn for settings without effect."""
    _check_data(config)
    _check_templates(config)
    _check_roles(config)
    for role, model in config.models.items():
        _check_model(role, model)
    _check_train(config)
    if config.select.judge == config.evaluate.judge == JudgeKind.rule:
        warnings.warn(
            "select.judge and evaluate.judge are both the demo's rule judge; use llm for results",
            stacklevel=2,
        )


def _check_data(config: Config) -> None:
    split = config.data.split
    if split.val < 0 or split.test < 0 or split.val + split.test >= 1:
        raise ValueError(
            f"data.split: val {split.val} and test {split.test} must be >= 0 and leave a share to train on"
        )
    if not config.data.sources:
        raise ValueError("data.sources is empty: name at least one source")
    for index, source in enumerate(config.data.sources):
        _check_source(f"data.sources[{index}]", source)


def _check_source(where: str, source: SourceConfig) -> None:
    if source.path and source.hub:
        raise ValueError(f"{where}: path and hub are both set; keep one")
    if source.path and not Path(source.path).is_file():
        raise ValueError(f"{where}.path: no file {source.path!r} (from {Path.cwd()})")
    if not source.path and not source.hub and source.kind not in KINDS_WITH_A_HUB_ID:
        raise ValueError(f"{where}: kind {source.kind} needs a path or a hub data set")
    if source.kind != SourceKind.table and source.columns:
        raise ValueError(f"{where}.columns has no meaning for kind {source.kind}, whose columns are known")
    if source.kind == SourceKind.table and "text" not in source.columns:
        raise ValueError(f"{where}.columns must name the column of `text` (and of `id` where there is one)")


def _check_templates(config: Config) -> None:
    steps = ["rewrite", "reframe", *(["guidelines"] if config.recipe.guidelines else [])]
    if JudgeKind.llm in (config.select.judge, config.evaluate.judge):
        steps += ["judge_helpfulness", "judge_harm", "judge_topic"]
    missing = Templates(config.recipe.templates).missing(steps)
    if missing:
        raise ValueError(f"recipe.templates: the set {config.recipe.templates!r} lacks {', '.join(missing)}")


def _check_roles(config: Config) -> None:
    needed = {"student": "every run trains it", config.recipe.generator: "recipe.generator"}
    for stage, settings in (("select", config.select), ("evaluate", config.evaluate)):
        if settings.judge == JudgeKind.llm:
            needed[settings.judge_role] = f"{stage}.judge_role"
    for role, reason in needed.items():
        if role not in config.models:
            raise ValueError(f"models.{role} is missing ({reason}); models has {sorted(config.models)}")
    if config.models["student"].backend == Backend.http:
        raise ValueError("models.student.backend: a model behind http cannot be trained; use vllm with its weights")
    for role in sorted(set(config.models) - set(needed)):
        warnings.warn(f"models.{role} is used by nothing", stacklevel=3)


def _check_model(role: str, model: ModelConfig) -> None:
    if model.backend == Backend.http and not model.base_url:
        raise ValueError(f"models.{role}.base_url: http needs the server's address, such as http://host:8000/v1")
    if model.backend != Backend.http and model.base_url:
        warnings.warn(f"models.{role}.base_url has no effect with backend {model.backend}", stacklevel=3)
    if model.backend != Backend.vllm and model.engine_args:
        warnings.warn(f"models.{role}.engine_args has no effect with backend {model.backend}", stacklevel=3)
    if model.engines < 1:
        raise ValueError(f"models.{role}.engines is {model.engines}; at least 1")
    for ours in ("model", "tokenizer", "revision", "trust_remote_code", "reasoning_parser"):
        if ours in model.engine_args:
            raise ValueError(f"models.{role}.engine_args.{ours}: set models.{role}.{ours} instead")
    path = Path(model.model)
    looks_local = model.model.startswith((".", "/", "~")) or path.is_dir()
    if model.backend == Backend.vllm and looks_local and not (path / "config.json").is_file():
        raise ValueError(f"models.{role}.model: no model in {model.model!r} (no config.json there)")


def _check_train(config: Config) -> None:
    train = config.train
    for name in (
        "epochs",
        "learning_rate",
        "global_batch_size",
        "micro_batch_size",
        "workers",
        "checkpoint_every",
    ):
        if getattr(train, name) <= 0:
            raise ValueError(f"train.{name} is {getattr(train, name)}; it must be above 0")
    per_pass = train.workers * train.micro_batch_size
    if train.global_batch_size % per_pass:
        raise ValueError(
            f"train.global_batch_size {train.global_batch_size} is no multiple of workers x micro_batch_size "
            f"({train.workers} x {train.micro_batch_size} = {per_pass})"
        )
    if train.loss_budget_gib < 0:
        raise ValueError(f"train.loss_budget_gib is {train.loss_budget_gib}; GiB per rank, or 0 for no limit")
    if train.loss_budget_gib and not train.fused_loss:
        warnings.warn("train.loss_budget_gib has no effect with train.fused_loss=false", stacklevel=3)
    if not 0 <= train.warmup_ratio < 1:
        raise ValueError(f"train.warmup_ratio is {train.warmup_ratio}; a share in [0, 1)")
    if config.evaluate.confidence <= 0 or config.evaluate.confidence >= 1:
        raise ValueError(f"evaluate.confidence is {config.evaluate.confidence}; a share in (0, 1)")
