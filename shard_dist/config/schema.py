"""The configuration: one tree of dataclasses, one docstring line under every field.

`train` is in `training.py`, `cluster` in `cluster.py`.

Checks that need more than one field live in `config/check.py`; types and unknown keys are OmegaConf's to refuse.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from shard_dist.config.cluster import ClusterConfig
from shard_dist.config.training import TrainConfig
from shard_dist.records import Sampling


class SourceKind(StrEnum):
    do_not_answer = "do_not_answer"
    linguasafe = "linguasafe"
    xstest = "xstest"
    table = "table"


class Backend(StrEnum):
    vllm = "vllm"
    http = "http"
    fake = "fake"


class JudgeKind(StrEnum):
    rule = "rule"
    llm = "llm"


class RaterKind(StrEnum):
    refusal = "refusal"
    helpfulness = "helpfulness"
    harmlessness = "harmlessness"
    strongreject = "strongreject"
    xstest = "xstest"
    do_not_answer = "do_not_answer"
    llama_guard = "llama_guard"
    shieldgemma = "shieldgemma"
    wildguard = "wildguard"
    harmbench = "harmbench"
    reward = "reward"
    rule_helpfulness = "rule_helpfulness"
    rule_harm = "rule_harm"


class Objective(StrEnum):
    own = "own"
    sft = "sft"
    dpo = "dpo"
    derta = "derta"


class OnChange(StrEnum):
    error = "error"
    redo = "redo"


class WandbMode(StrEnum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass
class RunConfig:
    name: str = ""
    """Name of the run; empty: the configuration file's name."""
    dir: str = ""
    """Directory of the run; empty: runs/<name>."""
    seed: int = 0
    """Seeds the split, every request and the training order."""
    on_change: OnChange = OnChange.error
    """The directory holds a run of another configuration: `error` stops, `redo` redoes the stages that it touches."""
    ledger: str = ""
    """Where finished calls are kept: a directory or an fsspec URL; several runs may share it. Empty: <dir>/ledger."""


@dataclass
class SourceConfig:
    kind: SourceKind = MISSING
    """Which reader: do_not_answer, linguasafe, xstest, or table (any file or hub data set with `columns`)."""
    path: str = ""
    """A CSV, JSONL or Parquet file. Either this or `hub`."""
    hub: str = ""
    """A data set on the Hugging Face hub; empty with an empty path: the kind's own hub id."""
    hub_split: str = "train"
    """Which split of the hub data set."""
    name: str = ""
    """The `dataset` half of every prompt's key; empty: the kind, or for tables the file's name."""
    columns: dict[str, str] = field(default_factory=dict)
    """For tables: our field -> their column. id, text, category, subcategory, level, language, source, group."""
    language: str = ""
    """Keep prompts of this language only; empty: all."""
    limit: int = 0
    """Keep the first n rows (of that language); 0: all."""


@dataclass
class SplitConfig:
    val: float = 0.1
    """Share of prompts for validation."""
    test: float = 0.2
    """Share of prompts for the test set, which is never generated for or trained on."""
    seed: int | None = None
    """Decides the split instead of run.seed: runs with several seeds then share their test set."""


@dataclass
class DataConfig:
    sources: list[SourceConfig] = MISSING
    """Where prompts come from."""
    split: SplitConfig = field(default_factory=SplitConfig)
    max_chars: int = 50_000
    """Longer prompts are kept out with a reason before anything tokenises them."""
    near_duplicates: float = 0.9
    """Prompts of train and val at least so similar to one of test (0 to 1) are kept out with a reason; 0: only those
    that differ in case, punctuation and white space."""


@dataclass
class FakeConfig:
    latency: float = 0.0
    """Seconds per call; on top of the steps where step_seconds is set."""
    slots: int = 0
    """Calls that run at once, others wait in the order in which they came; 0: all."""
    step_seconds: float = 0.0
    """Models continuous batching: seconds per decoding step; a call takes as many steps as its answer has tokens."""
    mean_tokens: float = 400
    """Mean length of an answer where step_seconds is set: lognormal, cut at the call's max_tokens."""
    mean_schema_tokens: float = 120
    """The same for answers under a schema."""
    error_rate: float = 0.0
    """Share of calls that raise a transient engine error."""
    refusal_rate: float = 0.5
    """Share of plain answers that refuse."""
    boot_seconds: float = 0.0
    """Seconds to load."""
    death_rate: float = 0.0
    """Share of calls that kill the engine."""
    silence_rate: float = 0.0
    """Share of calls after which the engine answers nothing any more."""
    poison: str = ""
    """A call whose messages contain this text kills the engine, each time."""


@dataclass
class ModelConfig:
    backend: Backend = Backend.vllm
    """vllm, http (any OpenAI-compatible server) or fake (tests)."""
    model: str = MISSING
    """Directory, hub id, or the server's model name."""
    revision: str = ""
    """Hub revision; empty: the default branch."""
    tokenizer: str = ""
    """Tokenizer directory or hub id where it is not the model's."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Passed to vLLM's AsyncEngineArgs as they are."""
    engines: int = 1
    """How many engines of this model, at least."""
    max_engines: int = 0
    """Grow to this many while rows wait and the cluster has room for one more; 0: no more than `engines`."""
    window: int = 0
    """Calls in flight per engine; 0: 1.1 x max_num_seqs."""
    gpus: float | None = None
    """GPUs per engine; unset: tensor x pipeline parallel size where the cluster has GPUs (vllm), else 0."""
    cpus: float = 1
    """CPUs that Ray reserves per engine."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of the engine's process."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to the chat template (enable_thinking and the like)."""
    reasoning_parser: str = ""
    """vLLM's parser that splits a reasoning model's thinking from its answer (deepseek_r1, qwen3, ...)."""
    boot_timeout: float = 1800
    """Seconds that an engine may take to load."""
    boot_attempts: int = 3
    """How often the boot of an engine is tried where its process dies; an error that it reports itself is final."""
    silent_timeout: float = 600
    """An engine that has calls and makes no token for so many seconds is replaced."""
    max_deaths: int = 5
    """The run gives a role up when its engines died this often without finishing a call in between; http: when the
    server has failed as many calls in a row for good."""
    base_url: str = ""
    """http: the server's address, ending in /v1."""
    api_key_env: str = "OPENAI_API_KEY"
    """http: name of the environment variable that holds the key. Keys are read from nowhere else."""
    timeout: float = 600
    """http: seconds per request."""
    max_retries: int = 6
    """http: retries of a failed request, with exponential back-off and Retry-After honoured."""
    max_requests: int = 0
    """http: a stage stops before it sends more requests than this, retries included; 0: no ceiling."""
    max_spend: float = 0.0
    """http: a stage stops when tokens cost more than this, by the two prices; 0: no ceiling."""
    input_price: float = 0.0
    """http: price of a million prompt tokens, in the currency of max_spend."""
    output_price: float = 0.0
    """http: price of a million completion tokens."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Leave off unless you have read that code."""
    fake: FakeConfig = field(default_factory=FakeConfig)
    """fake: injected latency and faults."""


@dataclass
class SamplingConfig:
    temperature: float = 0.3
    """0 decodes greedily."""
    top_p: float = 1.0
    """Nucleus."""
    max_tokens: int = 2000
    """Longest completion."""
    n: int = 1
    """Samples per request."""

    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.max_tokens, self.n)


@dataclass
class MixConfig:
    path: str = MISSING
    """A file of examples that people or other tools made."""
    format: str = "trl"
    """Its format, as `shard-dist examples` names them: shard, trl, open_instruct, alpaca, sharegpt or derta."""
    limit: int = 0
    """How many of its examples are drawn, by run.seed; 0: all."""
    objective: Objective = Objective.own
    """sft, dpo or derta instead of the file's own: pairs may serve any of the three."""


@dataclass
class RecipeConfig:
    name: str = "shard"
    """Which recipe: a module of shard_dist/recipes."""
    options: dict[str, Any] = field(default_factory=dict)
    """The recipe's own settings, by the names in its class Options."""
    generator: str = "student"
    """Role of `models` that writes rewrites and reframed answers: student is self-distillation."""
    templates: str = "shard"
    """Template set: a directory under shard_dist/prompts/templates, or a path to one of your own."""
    guidelines: bool = True
    """Let the generator write guidelines per category, once, and use them in the rewrite."""
    rewrite_attempts: int = 3
    """How often a rewrite that is no valid JSON is asked for again, with another seed."""
    guideline_sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_tokens=800))
    """A category's guidelines."""
    rewrite_sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_tokens=512))
    """The rewrite; its JSON must end within max_tokens."""
    answer_sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Draft and reframed answer, and every arm's answers in evaluation."""
    mix: list[MixConfig] = field(default_factory=list)
    """Examples from files that are trained on beside the recipe's own."""
    rounds: int = 1
    """Generate, select and train this often, each time with the model of the round before."""
    min_gain: float | None = 0.0
    """Rounds end where the new model's net wins in helpfulness over the one before, as a share of the validation
    prompts by the judge of `select`, are not above this, or its answers are more harmful; null: all rounds are run."""


@dataclass
class JudgingConfig:
    judge: JudgeKind = JudgeKind.llm
    """llm, or rule: the deterministic judge of the demo."""
    judge_role: str = "judge"
    """Role of `models` that judges (llm)."""
    judge_sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0, max_tokens=512))
    """Greedy by default; a verdict that does not parse is asked for again at a higher temperature."""
    judge_attempts: int = 2
    """How often an unparsable verdict is asked for again."""


@dataclass
class SelectConfig(JudgingConfig):
    keep_benign_ties: bool = True
    """Keep benign prompts (level 0) whose answer the reframing left as good as it was: they hold the model in place."""
    raters: list[RaterConfig] = field(default_factory=list)
    """Judges of single answers, for recipes that rank answers."""


@dataclass
class RaterConfig:
    kind: RaterKind = MISSING
    """Which judge of single answers; but for the refusal rules and the demo's two word rules it needs a role."""
    name: str = ""
    """What files and the report call it; empty: the kind."""
    role: str = ""
    """Role of `models` that it asks."""
    version: str = ""
    """llama_guard: 1, 2, 3 or 4, whose categories and format are meant; empty: 3."""
    policies: list[str] = field(default_factory=list)
    """shieldgemma: which of its policies are asked, each in a call of its own; empty: all four."""
    threshold: float = 0.5
    """llama_guard, shieldgemma: probability from which an answer counts as unsafe."""


@dataclass
class CapabilityConfig:
    text: str = ""
    """Plain text that nothing trained on (.txt: paragraphs; .jsonl, .parquet: field `text`): every arm's perplexity."""
    documents: int = 500
    """Documents of it that are read."""
    lm_eval: list[str] = field(default_factory=list)
    """Tasks of lm-evaluation-harness, which must be installed, run on every arm that is a directory of weights."""
    lm_eval_args: dict[str, str] = field(default_factory=dict)
    """Its further options, name -> value: {limit: "200", batch_size: auto}."""


@dataclass
class EvaluateConfig(JudgingConfig):
    confidence: float = 0.95
    """Level of every interval."""
    arms: dict[str, str] = field(default_factory=dict)
    """Arms beside base and tuned: name -> role of `models`. They get the same prompts, system prompt and decoding."""
    contexts: list[str] = field(default_factory=list)
    """Arms that read, beneath the system message, what the recipe found for each prompt (guide_align: guidelines)."""
    raters: list[RaterConfig] = field(default_factory=list)
    """Judges of single answers beside the refusal rules."""
    agreement: list[str] = field(default_factory=list)
    """Results of `shard-dist judge-bench --out`: how far these judges agree with people, printed beside their rates."""
    capability: CapabilityConfig = field(default_factory=CapabilityConfig)


@dataclass
class ReportConfig:
    samples: int = 200
    """Side-by-side samples on the page; 0: all that fit into it."""


@dataclass
class TrackingConfig:
    wandb: WandbMode = WandbMode.offline
    """offline, online or disabled. A plain JSONL is always written."""
    project: str = "shard-dist"
    """W&B project."""
    heartbeat: float = 10.0
    """Seconds between progress lines when there is no terminal."""


@dataclass
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    models: dict[str, ModelConfig] = MISSING
    """Roles: student always; teacher, judge and others as the recipe and the judges name them."""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
