"""prompts: sources -> prompts.parquet. Every prompt has its split, or the reason why it takes no part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shard_dist.artefacts import file_hash, value_hash
from shard_dist.config.load import as_dict
from shard_dist.config.schema import Backend, Config, ModelConfig
from shard_dist.data.load import count, load_prompts, write_prompts
from shard_dist.data.near import keep_test_apart
from shard_dist.progress import Progress
from shard_dist.prompts.render import Templates
from shard_dist.rundir import Run, Stage
from shard_dist.training.base_model import load_config, load_tokenizer


def inputs(run: Run) -> dict[str, Any]:
    config = run.config
    files = {source.path: file_hash(Path(source.path)) for source in config.data.sources if source.path}
    context = context_length(config.models["student"])
    return {
        "data": value_hash(as_dict(config)["data"]),
        "seed": split_seed(config),
        "files": files,
        "context": [context, config.recipe.answer_sampling.max_tokens],
    }


def work(run: Run, progress: Progress) -> dict[str, Any]:
    config = run.config
    prompts, _ = load_prompts(
        config.data.sources,
        config.data.split,
        seed=split_seed(config),
        max_chars=config.data.max_chars,
        too_long=longer_than_context(run),
    )
    prompts = keep_test_apart(prompts, config.data.near_duplicates)
    write_prompts(run / "prompts.parquet", prompts)
    return count(prompts)


def split_seed(config: Config) -> int:
    own = config.data.split.seed
    return config.run.seed if own is None else own


def context_length(student: ModelConfig) -> int:
    """Tokens that the student can hold: the engine's limit, else the model's own; 0 where neither is known."""
    if student.backend != Backend.vllm:
        return 0
    if "max_model_len" in student.engine_args:
        return int(student.engine_args["max_model_len"])
    model = load_config(student.model, student.revision, student.trust_remote_code)
    return int(getattr(model, "max_position_embeddings", 0))


def longer_than_context(run: Run) -> Callable[[str], bool] | None:
    """Whether a prompt and the longest answer exceed the student's context, its chat template counted in."""
    student, recipe = run.config.models["student"], run.config.recipe
    context = context_length(student)
    if not context:
        return None
    tokenizer = load_tokenizer(student.model, student.revision, student.tokenizer, student.trust_remote_code)
    templates = Templates(recipe.templates)
    room = context - recipe.answer_sampling.max_tokens
    if room <= 0:
        raise ValueError(
            f"recipe.answer_sampling.max_tokens {recipe.answer_sampling.max_tokens} leaves no room for a prompt in the "
            f"student's context of {context} tokens"
        )

    def too_long(text: str) -> bool:
        messages = [dict(message) for message in templates.chat(text)]
        ids = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            **student.chat_template_kwargs,
        )
        return len(ids) > room

    return too_long


STAGE = Stage("prompts", inputs, ("prompts.parquet",), work)
