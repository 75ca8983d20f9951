"""The four nouns: Prompt, Call and Completion, Record, Example.

Plain frozen data, no I/O. A prompt's identity is the pair (dataset, id), never the id alone: Do-Not-Answer's
ids 0..938 are LinguaSafe's too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Key = tuple[str, str]  # (dataset, id)

SPLITS = ("train", "val", "test")
# chat: a completion of the messages under the chat template.
# text: a completion of the parts' contents, one behind the other; parts of role frame are ours, all others data, whose
# control tokens are broken.
# score: what a classification head says of the messages under the chat template.
# likelihood: of the one message's content, (sum of tokens' log-probabilities given those before them, their number).
KINDS = ("chat", "text", "score", "likelihood")


@dataclass(frozen=True)
class Prompt:
    """One request of a user, normalised, with its split fixed before anything is generated.

    `level` is LinguaSafe's severity: 0 benign (a probe of over-refusal), 1..3 rising; None where unknown, which is
    treated as sensitive. `group` keeps related prompts in one split. `excluded` says why a prompt takes no part.
    """

    dataset: str
    id: str
    text: str
    category: str = ""
    subcategory: str = ""
    level: int | None = None
    language: str = "en"
    source: str = ""
    group: str = ""
    split: str = ""
    excluded: str = ""

    @property
    def key(self) -> Key:
        return (self.dataset, self.id)

    @property
    def benign(self) -> bool:
        return self.level == 0


@dataclass(frozen=True)
class Sampling:
    """How to decode. `seed` belongs to one request; `n` samples are drawn from it.

    `logprobs`: of how many alternatives at each of the first tokens the log-probabilities are reported; 0: none.
    """

    temperature: float = 0.3
    top_p: float = 1.0
    max_tokens: int = 512
    n: int = 1
    seed: int = 0
    logprobs: int = 0


@dataclass(frozen=True)
class Call:
    """What is asked of a model. `fingerprint` identifies the weights, so a retrained model is another model.

    `kind` says what is done with the messages, one of KINDS; `template` are values for the model's chat template beyond
    those of its role (a guard's policy).
    """

    model: str
    fingerprint: str
    messages: tuple[Message, ...]
    sampling: Sampling
    schema: dict[str, Any] | None = None
    kind: str = "chat"
    template: dict[str, Any] | None = None


@dataclass(frozen=True)
class Completion:
    """What came back: all n samples. `thinking` holds what a reasoning model wrote before its answer ("" if nothing).

    `finish_reasons` are the engine's words: "stop" (the model ended) or "length" (cut at max_tokens). `logprobs` has
    for each of the first sample's first tokens: token text -> log-probability, natural logarithm. `scores` is the
    answer to calls of kind score (one number per label, as the head gives them) and likelihood; `texts` is then ("",).
    """

    texts: tuple[str, ...]
    finish_reasons: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    thinking: tuple[str, ...] = ()
    logprobs: tuple[dict[str, float], ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        return self.texts[0]

    @property
    def truncated(self) -> bool:
        return self.finish_reasons[0] == "length"


@dataclass(frozen=True)
class Record:
    """A prompt and everything its recipe produced, field by field, with the keys of the calls behind it.

    `failure` is empty for a complete record, else the reason why the program gave up ("rewrite: no valid JSON in 3
    attempts"). A failed record is kept and counted: no prompt disappears.
    """

    prompt: Prompt
    recipe: str
    fields: dict[str, str] = field(default_factory=dict)
    calls: dict[str, list[str]] = field(default_factory=dict)
    failure: str = ""


@dataclass(frozen=True)
class Example:
    """What training consumes: the messages of the prompt, the target answer, the objective it belongs to.

    `rejected` is the answer that `dpo` pushes away from and the harmful one that `derta` teaches to break off; empty
    for `sft`. `thinking` is what a reasoning model learns to write before the target, `sft` only; empty: nothing.
    """

    dataset: str
    id: str
    messages: tuple[Message, ...]
    target: str
    objective: str = "sft"
    rejected: str = ""
    thinking: str = ""
