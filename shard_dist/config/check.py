"""Contradictions between settings, found before anything starts."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from urllib.parse import urlsplit

from shard_dist.config.check_evaluate import check_evaluate, roles, steps
from shard_dist.config.schema import (
    Backend,
    Config,
    FakeConfig,
    JudgeKind,
    ModelConfig,
    SourceConfig,
    SourceKind,
)
from shard_dist.config.training import Offload, Packing, TrainConfig
from shard_dist.prompts.render import Templates

# Settings that one backend alone reads.
ONLY_HTTP = (
    "base_url",
    "api_key_env",
    "timeout",
    "max_retries",
    "max_requests",
    "max_spend",
    "input_price",
    "output_price",
)
ONLY_VLLM = ("engine_args", "reasoning_parser", "trust_remote_code")
# The least value of a setting that counts or limits something; what must be above 0 is in POSITIVE.
LEAST = {
    "engines": 1,
    "max_engines": 0,
    "window": 0,
    "boot_attempts": 1,
    "max_deaths": 1,
    "max_retries": 0,
    "max_requests": 0,
    "max_spend": 0,
    "input_price": 0,
    "output_price": 0,
}
TRAIN_POSITIVE = (
    "epochs",
    "learning_rate",
    "global_batch_size",
    "micro_batch_size",
    "max_tokens",
    "workers",
    "checkpoint_every",
)
POSITIVE = ("cpus", "boot_timeout", "silent_timeout", "timeout")
FAKE_LEAST = ("latency", "slots", "step_seconds", "boot_seconds")
FAKE_POSITIVE = ("mean_tokens", "mean_schema_tokens")
FAKE_SHARES = ("error_rate", "refusal_rate", "death_rate", "silence_rate")

KINDS_WITH_A_HUB_ID = (SourceKind.do_not_answer, SourceKind.linguasafe)


def check(config: Config) -> None:
    """Raise ValueError for the first contradiction, naming its keys; warn for settings without effect."""
    _check_data(config)
    check_evaluate(config)
    _check_templates(config)
    _check_roles(config)
    _require(config.recipe.rounds >= 1, "recipe.rounds", config.recipe.rounds, "at least 1")
    _check_models(config)
    _check_cluster(config)
    _check_train(config.train)
    if config.select.judge == config.evaluate.judge == JudgeKind.rule:
        warnings.warn(
            "select.judge and evaluate.judge are both the demo's rule judge; use llm for results",
            stacklevel=2,
        )


def check_judging(config: Config) -> None:
    """The same for a configuration of judges alone, which has neither data nor a student."""
    check_evaluate(config)
    Templates(config.recipe.templates).check(steps(config.evaluate.raters))
    _check_models(config)
    _check_cluster(config)


def _check_data(config: Config) -> None:
    split = config.data.split
    if split.val < 0 or split.test < 0 or split.val + split.test >= 1:
        raise ValueError(
            f"data.split: val {split.val} and test {split.test} must be >= 0 and leave a share to train on"
        )
    near = config.data.near_duplicates
    _require(0 <= near <= 1, "data.near_duplicates", near, "a similarity from 0 (off) to 1")
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
    asked = steps([*config.evaluate.raters, *config.select.raters])
    if JudgeKind.llm in (config.select.judge, config.evaluate.judge):
        asked += ["judge_helpfulness", "judge_harm", "judge_topic"]
    Templates(config.recipe.templates).check(asked)


def roles_needed(config: Config) -> dict[str, str]:
    """Role -> why it is needed; a recipe may ask further ones."""
    needed = {**roles(config), "student": "every run trains it", config.recipe.generator: "recipe.generator"}
    for stage, settings in (("select", config.select), ("evaluate", config.evaluate)):
        if settings.judge == JudgeKind.llm:
            needed[settings.judge_role] = f"{stage}.judge_role"
    return needed


def _check_roles(config: Config) -> None:
    for role, reason in roles_needed(config).items():
        if role not in config.models:
            raise ValueError(f"models.{role} is missing ({reason}); models has {sorted(config.models)}")
    if config.models["student"].backend == Backend.http:
        raise ValueError("models.student.backend: a model behind http cannot be trained; use vllm with its weights")
    for name in config.evaluate.contexts:
        if name not in ("base", "tuned", *config.evaluate.arms):
            raise ValueError(
                f"evaluate.contexts: no arm {name!r}; there are base, tuned, {', '.join(config.evaluate.arms)}"
            )


def _check_models(config: Config) -> None:
    for role, model in config.models.items():
        where = f"models.{role}"
        _check_model(where, model)
        _check_engines(where, model)
        _check_http(where, model)
        _check_fake(f"{where}.fake", model)


def _check_model(where: str, model: ModelConfig) -> None:
    for name in ONLY_HTTP if model.backend != Backend.http else ():
        if getattr(model, name) != getattr(ModelConfig, name):
            warnings.warn(f"{where}.{name} has no effect with backend {model.backend}", stacklevel=3)
    for name in ONLY_VLLM if model.backend != Backend.vllm else ():
        if getattr(model, name):
            warnings.warn(f"{where}.{name} has no effect with backend {model.backend}", stacklevel=3)
    for ours in ("model", "tokenizer", "revision", "trust_remote_code", "reasoning_parser"):
        if ours in model.engine_args:
            raise ValueError(f"{where}.engine_args.{ours}: set {where}.{ours} instead")
    path = Path(model.model)
    looks_local = model.model.startswith((".", "/", "~")) or path.is_dir()
    if model.backend == Backend.vllm and looks_local and not (path / "config.json").is_file():
        raise ValueError(f"{where}.model: no model in {model.model!r} (no config.json there)")


def _check_engines(where: str, model: ModelConfig) -> None:
    for name, least in LEAST.items():
        _require(getattr(model, name) >= least, f"{where}.{name}", getattr(model, name), f"at least {least}")
    for name in POSITIVE:
        _require(getattr(model, name) > 0, f"{where}.{name}", getattr(model, name), "it must be above 0")
    if 0 < model.max_engines < model.engines:
        raise ValueError(f"{where}.max_engines is {model.max_engines}, fewer than {where}.engines = {model.engines}")
    if model.gpus is not None:
        whole = 0 <= model.gpus <= 1 or float(model.gpus).is_integer()
        _require(model.gpus >= 0 and whole, f"{where}.gpus", model.gpus, "a whole number, or a share of one GPU")
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        size = model.engine_args.get(name, 1)
        _require(type(size) is int and size >= 1, f"{where}.engine_args.{name}", size, "a whole number from 1")
    if model.engine_args.get("data_parallel_size", 1) != 1:
        raise ValueError(f"{where}.engine_args.data_parallel_size: set {where}.engines instead, one engine per replica")


def _check_http(where: str, model: ModelConfig) -> None:
    if model.backend != Backend.http:
        return
    try:
        url = urlsplit(model.base_url)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        raise ValueError(f"{where}.base_url: http needs the server's address, such as http://host:8000/v1")
    if not re.fullmatch(r"([A-Za-z_]\w*)?", model.api_key_env, re.ASCII):  # empty: no key is sent
        # Not shown: it may be a key, put into the wrong place.
        raise ValueError(f"{where}.api_key_env holds no name of an environment variable; name the one that has the key")
    if model.silent_timeout != ModelConfig.silent_timeout:
        warnings.warn(f"{where}.silent_timeout has no effect with backend http; set {where}.timeout", stacklevel=3)
    most = max(model.engines, model.max_engines)
    if 0 < model.max_requests < most:
        raise ValueError(f"{where}.max_requests is {model.max_requests}: {most} engines share it, at least 1 for each")
    priced = model.input_price or model.output_price
    if model.max_spend and not priced:
        warnings.warn(f"{where}.max_spend has no effect without input_price and output_price", stacklevel=3)
    if priced and not model.max_spend:
        warnings.warn(f"{where}.input_price and output_price have no effect without max_spend", stacklevel=3)


def _check_fake(where: str, model: ModelConfig) -> None:
    fake = model.fake
    if model.backend != Backend.fake:
        if fake != FakeConfig():
            warnings.warn(f"{where} has no effect with backend {model.backend}", stacklevel=3)
        return
    for name in FAKE_LEAST:
        _require(getattr(fake, name) >= 0, f"{where}.{name}", getattr(fake, name), "at least 0")
    for name in FAKE_POSITIVE:
        _require(getattr(fake, name) > 0, f"{where}.{name}", getattr(fake, name), "it must be above 0")
        if not fake.step_seconds and getattr(fake, name) != getattr(FakeConfig, name):
            warnings.warn(f"{where}.{name} has no effect without step_seconds", stacklevel=3)
    for name in FAKE_SHARES:
        _require(0 <= getattr(fake, name) <= 1, f"{where}.{name}", getattr(fake, name), "a share from 0 to 1")
    _require(
        fake.death_rate + fake.silence_rate <= 1,
        f"{where}: the sum of death_rate and silence_rate",
        fake.death_rate + fake.silence_rate,
        "at most 1",
    )


def _check_cluster(config: Config) -> None:
    for name in ("cpus", "boots_at_once", "wait_for_nodes"):
        value = getattr(config.cluster, name)
        _require(value >= 0, f"cluster.{name}", value, "at least 0")


def _require(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{key} is {value}; {allowed}")


def _check_train(train: TrainConfig) -> None:
    for name in TRAIN_POSITIVE:
        _require(getattr(train, name) > 0, f"train.{name}", getattr(train, name), "it must be above 0")
    _require(0 <= train.warmup_ratio < 1, "train.warmup_ratio", train.warmup_ratio, "a share in [0, 1)")
    if train.workers // max(1, train.long.sequence_parallel) > train.global_batch_size:  # groups that share a row
        warnings.warn(
            f"train.workers is {train.workers} and train.global_batch_size {train.global_batch_size}: "
            "workers without a row wait for the others in every step",
            stacklevel=3,
        )
    if train.keep_best and (not train.eval_every or train.checkpoint_every % train.eval_every):
        warnings.warn(
            "train.keep_best chooses among checkpoints with a validation loss, and train.checkpoint_every "
            f"{train.checkpoint_every} is no multiple of train.eval_every {train.eval_every}",
            stacklevel=3,
        )
    _check_loss(train)
    _check_objectives(train)
    _check_long(train)
    guards = train.guards
    _require(guards.max_bad_steps >= 1, "train.guards.max_bad_steps", guards.max_bad_steps, "at least 1")
    for name in ("spike_factor", "hang_timeout"):
        _require(getattr(guards, name) >= 0, f"train.guards.{name}", getattr(guards, name), "0 (off) or more")


def _check_loss(train: TrainConfig) -> None:
    _require(0 <= train.label_smoothing < 1, "train.label_smoothing", train.label_smoothing, "a share in [0, 1)")
    _require(train.z_loss >= 0, "train.z_loss", train.z_loss, "it must be 0 or more")
    budget = train.loss_budget_gib
    _require(budget >= 0, "train.loss_budget_gib", budget, "GiB per rank, or 0 for no limit")
    if budget and not train.fused_loss:
        warnings.warn("train.loss_budget_gib has no effect with train.fused_loss=false", stacklevel=4)


def _check_long(train: TrainConfig) -> None:
    long, size = train.long, train.long.sequence_parallel
    for name in ("sequence_parallel", "mlp_tiles"):
        _require(getattr(long, name) >= 1, f"train.long.{name}", getattr(long, name), "at least 1")
    if train.workers % size:
        raise ValueError(f"train.workers {train.workers} is no multiple of train.long.sequence_parallel {size}")
    if size > 1 and train.packing == Packing.none:
        raise ValueError("train.long.sequence_parallel shares packed rows; set train.packing to batch or dataset")
    if size > 1 and train.attention != "auto" and "flash" not in train.attention:
        raise ValueError(
            f"train.attention {train.attention} keeps the examples of a row apart by a mask, which cannot be shared "
            "with train.long.sequence_parallel; use auto or one of the flash attentions"
        )
    places = (long.offload_optimizer, long.offload_parameters)
    if Offload.nvme in places and not long.nvme_path:
        raise ValueError("train.long.nvme_path: name a directory on a local disk for what is offloaded to nvme")
    if long.nvme_path and Offload.nvme not in places:
        warnings.warn("train.long.nvme_path has no effect: nothing is offloaded to nvme", stacklevel=4)
    if long.offload_activations and not train.gradient_checkpointing:
        warnings.warn("train.long.offload_activations has no effect without train.gradient_checkpointing", stacklevel=4)
    if not train.gpus_per_worker and (long.offload_activations or Offload.cpu in places):
        warnings.warn("train.long: offloading to the CPU spares nothing where training runs on it", stacklevel=4)


def _check_objectives(train: TrainConfig) -> None:
    dpo, derta = train.dpo, train.derta
    _require(dpo.beta > 0, "train.dpo.beta", dpo.beta, "it must be above 0")
    # At a half, a pair says nothing; beyond, it says the opposite.
    _require(0 <= dpo.label_smoothing < 0.5, "train.dpo.label_smoothing", dpo.label_smoothing, "a share in [0, 0.5)")
    _require(derta.rto_weight >= 0, "train.derta.rto_weight", derta.rto_weight, "it must be 0 or more")
    _require(0 <= derta.no_prefix <= 1, "train.derta.no_prefix", derta.no_prefix, "a share from 0 to 1")
    _require(0 < derta.keep <= 1, "train.derta.keep", derta.keep, "a share in (0, 1]")
    if not derta.refusal.strip():
        raise ValueError("train.derta.refusal is empty; it is how a refusal begins, such as Sorry")
    # A piece begins with the last token of the one before.
    _require(train.max_tokens > 1 or not train.split_long_examples, "train.max_tokens", train.max_tokens, "2 or more")
