"""What memory is planned and measured for: random Llamas on rows of letters that fill max_tokens to the last token."""

from __future__ import annotations

import json
import pickle
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_data import BYTES, save_model
from training_runs import our_job
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from shard_dist.config.cluster import NodesConfig
from shard_dist.config.training import TrainConfig
from shard_dist.demo.build_seed import byte_level_tokenizer
from shard_dist.plan.model import shape_of
from shard_dist.plan.training import TrainingMemory, training_memory
from shard_dist.records import Example
from shard_dist.training.job import TrainJob

RANK = Path(__file__).parents[1] / "plan" / "measured_rank.py"
STEPS = 2  # see there


@dataclass(frozen=True)
class Case:
    """A model by LlamaConfig's sizes, and how it is trained."""

    name: str
    llama: dict[str, Any]
    config: TrainConfig

    def job(self, home: Path, steps: int = STEPS) -> TrainJob:
        """The model and the examples of `steps` steps, written to `home`."""
        save_model(home / "model", byte_level_tokenizer([string.ascii_letters], BYTES), **self.llama)
        tokenizer = AutoTokenizer.from_pretrained(home / "model")
        rows = full_rows(tokenizer, self.config.max_tokens, steps * self.config.global_batch_size)
        return our_job(home / "run", home / "model", list(rows), self.config)

    def pickled(self, home: Path) -> Path:
        """The job, for measured_rank.py."""
        path = home / "job.pickle"
        path.write_bytes(pickle.dumps(self.job(home)))
        return path

    def plan(self, home: Path, nodes: NodesConfig | None = None) -> TrainingMemory:
        return training_memory(shape_of(str(home / "model")), self.config, nodes or NodesConfig())


def full_rows(tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> Iterator[Example]:
    """Answers of random letters, a token each, to the same short question: nearly all tokens are trained on."""
    asked = {"role": "user", "content": "a"}
    bare = tokenizer.apply_chat_template([asked, {"role": "assistant", "content": ""}], return_dict=False)
    draw = random.Random(0)
    for number in range(count):
        letters = "".join(draw.choices(string.ascii_letters, k=length - len(bare)))
        yield Example("letters", str(number), (asked,), letters)


def measured(out: Path, ranks: int) -> list[dict[str, Any]]:
    """What the ranks wrote."""
    return [json.loads(out.with_name(f"{out.name}.{rank}").read_text()) for rank in range(ranks)]


def highest(found: list[dict[str, Any]]) -> int:
    return max(peak for rank in found for peak in rank["peaks"].values())
