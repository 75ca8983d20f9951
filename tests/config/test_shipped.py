"""Every file under configs/ is whole: it loads, and its models go together and fit onto the machines that it names."""

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from shard_dist.config.check import check
from shard_dist.config.load import config_of, identity, include, load_config, load_judging, read_tree, read_values
from shard_dist.config.schema import Backend, Config, JudgeKind, ModelConfig
from shard_dist.config.training import Offload, Packing
from shard_dist.pipeline import STAGES, stages_of
from shard_dist.plan.account import GIB
from shard_dist.plan.model import shape_of
from shard_dist.plan.training import training_memory
from shard_dist.sweep.plan import Arm, load_sweep

CONFIGS = Path(__file__).parents[2] / "configs"


def shipped(folder: str) -> list[Path]:
    return sorted((CONFIGS / folder).glob("*.yaml"))


STEM = attrgetter("stem")
OURS, FAITHFUL = CONFIGS / "shard/ours.yaml", CONFIGS / "shard/faithful.yaml"
RUNS = [file for file in shipped("shard") if file not in (OURS, FAITHFUL)] + shipped("recipes")
STUDENTS, JUDGES, SWEEPS = shipped("models/students"), shipped("judges"), shipped("sweeps")
CLUSTERS, LARGE = shipped("clusters"), shipped("large")
DEMOS = [CONFIGS / "demo.yaml", *(file for file in SWEEPS if file.stem.startswith("demo"))]
JUDGE, TEACHER = CONFIGS / "models/judges/gemma4_31b.yaml", CONFIGS / "models/teachers/qwen35_122b_a10b.yaml"
GUARD = CONFIGS / "judges/llama_guard3.yaml"
NO_WARNING = pytest.mark.filterwarnings("error::UserWarning")
# Billions of parameters of each student, as its file says.
SIZES = {
    "llama31_8b": 8.0, "llama33_70b": 70.6, "qwen35_9b": 9, "qwen35_27b": 27,
    "mistral_7b": 7.2, "mistral_small_24b": 23.6, "phi4": 14.7,
}  # fmt: skip
# config.json of the students of configs/large.
SHAPES = {
    "llama31_8b": Path(__file__).parents[1] / "plan/models/Llama-3.1-8B",
    "llama33_70b": Path(__file__).parents[1] / "plan/models/Llama-3.3-70B",
}
# What files of data that a user brings hold here: settings are checked against them before a run starts.
PAIR = {
    "prompt": [{"role": "user", "content": "Which month is warm?"}],
    "chosen": [{"role": "assistant", "content": "July is."}],
    "rejected": [{"role": "assistant", "content": "No month is."}],
}
LABELLED = "question,response,harmful\nWhich month is warm?,July is.,0\nWhich month is warm?,No month is.,1\n"
DATA_FILES = {".jsonl": json.dumps(PAIR) + "\n", ".json": "[]", ".csv": LABELLED}


def load_run(file: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration, checked as `shard-dist run` does before it starts."""
    config = load_config(file, overrides)
    for stage in stages_of(config, [stage.name for stage in STAGES]):
        stage.check(config)
    return config


def composed(directory: Path, *included: Path, own: str = "") -> Path:
    """A file that includes others, as a user would write it."""
    file = directory / "composed.yaml"
    file.write_text(yaml.safe_dump({"include": [str(path) for path in included]}) + own)
    return file


def data_files(value: Any) -> set[str]:
    """Relative paths of data that a user brings, wherever in the tree they stand."""
    if isinstance(value, dict | list):
        return {path for item in (value.values() if isinstance(value, dict) else value) for path in data_files(item)}
    return {value} if isinstance(value, str) and value.endswith(tuple(DATA_FILES)) else set()


def llms(config: Config) -> dict[str, ModelConfig]:
    return {role: model for role, model in config.models.items() if model.backend == Backend.vllm}


def check_fit(config: Config) -> None:
    """On nodes with 8 GPUs: every role's engines, contexts with room for answers, whole batches for every process."""
    nodes, train = config.cluster.nodes.count or 1, config.train
    for role, model in llms(config).items():
        gpus = model.engine_args.get("tensor_parallel_size", 1)
        assert 8 % gpus == 0, role
        assert gpus * max(model.engines, model.max_engines) <= 8 * nodes, role
        assert not model.trust_remote_code, role
    for role in ("student", config.recipe.generator):
        context = config.models[role].engine_args["max_model_len"]
        assert context >= config.recipe.answer_sampling.max_tokens + 2048, role
    assert train.workers % 8 == 0
    assert train.workers <= 8 * nodes
    groups = train.workers // train.long.sequence_parallel
    assert train.global_batch_size % (groups * train.micro_batch_size) == 0


def check_judges(config: Config) -> None:
    """Whoever judges is no model whose answers are judged: it would like its own."""
    answering = {config.models[role].model for role in ("student", config.recipe.generator)}
    for settings in (config.select, config.evaluate):
        assert settings.judge == JudgeKind.rule or config.models[settings.judge_role].model not in answering
    assert config.evaluate.judge == JudgeKind.llm


def check_qwen35(config: Config) -> None:
    """Qwen3.5 thinks unless told otherwise, and its linear attention carries one example into the next of a row."""
    for role, model in llms(config).items():
        if "Qwen3.5" in model.model:
            thinks = model.chat_template_kwargs.get("enable_thinking", True)
            assert model.reasoning_parser == ("qwen3" if thinks else ""), role
    if "Qwen3.5" in config.models["student"].model:
        assert config.train.packing == Packing.none


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's working directory, with the one model that is made by hand."""
    place = tmp_path / "project"
    (place / "runs/models/mistral_small_24b").mkdir(parents=True)
    (place / "runs/models/mistral_small_24b/config.json").write_text("{}")
    monkeypatch.chdir(place)
    return place


def test_every_file_is_covered_here() -> None:
    known = {*STUDENTS, OURS, FAITHFUL, *RUNS, *SWEEPS, *DEMOS, *JUDGES, JUDGE, TEACHER, *CLUSTERS, *LARGE}
    parts = {CONFIGS / "base.yaml", *shipped("large/parts")}  # included by others
    assert set(CONFIGS.rglob("*.yaml")) - known == parts


@pytest.mark.parametrize("file", DEMOS, ids=STEM)
def test_a_demo_is_warned_of_its_judge_alone(file: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if file in SWEEPS:  # its teacher is the model that the demo trains
            load_sweep(
                file, ["models.teacher.model=shard_dist/demo/seed_model", "models.teacher.chat_template_kwargs={a: 1}"]
            )
        else:
            load_run(file)
    told = {str(warning.message) for warning in caught}
    assert told == {"select.judge and evaluate.judge are both the demo's rule judge; use llm for results"}


@NO_WARNING
@pytest.mark.parametrize("file", RUNS, ids=STEM)
def test_a_run_is_accepted(file: Path, project: Path) -> None:
    for path in (project / name for name in data_files(read_values(file))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(DATA_FILES[path.suffix])
    config = load_run(file)
    check_fit(config)
    check_judges(config)
    check_qwen35(config)


@NO_WARNING
@pytest.mark.parametrize("student", STUDENTS, ids=STEM)
def test_every_student_learns_from_the_teacher_by_the_authors_settings(student: Path, project: Path) -> None:
    file = composed(project, FAITHFUL, student, TEACHER, JUDGE, own="recipe: {generator: teacher}\n")
    config = load_run(file)
    check_fit(config)
    check_judges(config)
    check_qwen35(config)


@pytest.mark.parametrize("student", STUDENTS, ids=STEM)
def test_a_students_states_fit_as_its_file_reckons(student: Path) -> None:
    """18 bytes a parameter: weights 2; in fp32 gradients 4, master weights 4, moments 8. All but weights offload."""
    train, stated = read_values(student)["train"], student.read_text()
    offloaded = train.get("long") == {"offload_optimizer": "cpu"}
    states = SIZES[student.stem] * (2 if offloaded else 18) / train["workers"]
    assert states < 56  # GB of 80: a quarter and more is left to activations, head and gathered weights
    assert f"{SIZES[student.stem]} B parameters x 18 bytes" in stated
    assert (f"({states:.0f} GB" if offloaded else f"= {states:.0f} GB of states") in stated


def test_the_presets_differ_where_they_say_so(tmp_path: Path) -> None:
    """The authors' settings, by their code (dcf5eba), and a test set that run.seed does not move."""
    ours, theirs = (load_config(composed(tmp_path, preset, STUDENTS[0], JUDGE)) for preset in (OURS, FAITHFUL))
    assert ours.data.split.seed is not None
    assert (theirs.run.seed, theirs.data.split.test, theirs.data.split.val) == (42, 0.2, 0.08)
    assert (theirs.recipe.answer_sampling.temperature, theirs.recipe.answer_sampling.top_p) == (0.3, 0.9)
    assert (theirs.recipe.answer_sampling.max_tokens, theirs.recipe.rewrite_sampling.max_tokens) == (2000, 512)
    assert (theirs.select.judge_sampling.temperature, theirs.evaluate.judge_sampling.temperature) == (0.1, 0.0)
    for train in (ours.train, theirs.train):
        assert (train.epochs, train.global_batch_size, train.warmup_ratio, train.learning_rate) == (3, 64, 0.05, 1e-5)
        assert train.max_tokens >= theirs.recipe.answer_sampling.max_tokens
    assert [source.kind for source in ours.data.sources] == [source.kind for source in theirs.data.sources]


@NO_WARNING
@pytest.mark.parametrize("file", [*JUDGES, JUDGE], ids=STEM)
def test_a_file_of_judges_serves_score(file: Path) -> None:
    assert llms(load_judging(file))


@cache
def arms_of(file: Path) -> tuple[Arm, ...]:
    return load_sweep(file).arms


@NO_WARNING
@pytest.mark.parametrize("file", [file for file in SWEEPS if file not in DEMOS], ids=STEM)
def test_a_sweep_has_arms_that_fit(file: Path, project: Path) -> None:
    for arm in arms_of(file):
        check_fit(arm.config)
        check_judges(arm.config)
        check_qwen35(arm.config)


def test_the_papers_sweep_is_every_student_by_all_four_ways(project: Path) -> None:
    arms = arms_of(CONFIGS / "sweeps/paper.yaml")
    ways = ("self", "teacher", "rational", "rational_teacher")
    assert {arm.name for arm in arms} == {f"{file.stem}-{by}" for file in STUDENTS for by in ways}
    assert len({arm.config.models["student"].model for arm in arms}) == len(STUDENTS) == 7


@cache
def large(file: Path) -> Config:
    return load_run(file)


@pytest.mark.filterwarnings("ignore:models.teacher is used by nothing")
@NO_WARNING
@pytest.mark.parametrize("file", LARGE, ids=STEM)
def test_a_large_run_is_what_its_name_says_by_itself_and_by_the_teacher(file: Path, project: Path) -> None:
    """Student, length and cluster; rows that hold the longest answer, contexts that hold two of them."""
    student, length, nodes = file.stem.rsplit("_", 2)
    config = large(file)
    for generator in ("student", "teacher"):
        either = replace(config, recipe=replace(config.recipe, generator=generator))
        check(either)
        check_fit(either)
        check_judges(either)
    tokens, answer = config.train.max_tokens, config.recipe.answer_sampling.max_tokens
    assert (
        config.models["student"].model
        == read_values(CONFIGS / f"models/students/{student}.yaml")["models"]["student"]["model"]
    )
    assert (tokens, f"{config.cluster.nodes.count}x{config.cluster.nodes.gpus}") == (1024 * int(length[:-1]), nodes)
    assert tokens >= answer + 1024
    contexts = {role: model.engine_args["max_model_len"] for role, model in config.models.items()}
    assert min(contexts[role] for role in ("student", "teacher", "judge")) >= 2 * answer + 2048
    assert contexts["guard"] >= answer + 4096


def test_every_student_length_and_cluster_has_its_file() -> None:
    names = product(("llama31_8b", "llama33_70b"), ("8k", "32k"), ("1x8", "4x8", "16x8"))
    assert {file.stem for file in LARGE} == {"_".join(name) for name in names}


@pytest.mark.parametrize("file", LARGE, ids=STEM)
def test_a_large_runs_states_fit_as_its_file_reckons(file: Path, project: Path) -> None:
    """What the header says of states and of a GPU's whole memory is what `plan` reckons, within a GiB or 10 %."""
    config, student = large(file), file.stem.rsplit("_", 2)[0]
    train, size, shape = config.train, SIZES[student], shape_of(str(SHAPES[student]))
    memory = training_memory(shape, train, config.cluster.nodes)
    stated = " ".join(line.strip("# ") for line in file.read_text().splitlines() if line.startswith("#"))
    found = re.search(r"in all (\d+) GiB of 79.6", stated)
    assert found is not None
    assert float(found[1]) == pytest.approx(memory.device.total / GIB, abs=1, rel=0.1)
    assert memory.device.fits
    assert memory.node.fits
    if train.long.offload_optimizer == Offload.cpu:
        states = (
            f"({size * 2 / train.workers:.0f} GB a GPU) and the other 16 bytes go to the CPU: {size * 0.016:.2f} TB"
        )
    else:
        states = f"states {size} B x 18 bytes / {train.workers} = "
        states += f"{size * 18 / train.workers:.{0 if train.workers < 32 or size > 60 else 1}f} GB"
    assert states in stated


def test_the_guide_names_every_large_run(root: Path) -> None:
    guide = (root / "launch/README.md").read_text()
    assert set(re.findall(r"\bllama\w+x\d+\b", guide)) - {"llama33_70b_8k_4x8_teacher"} == {file.stem for file in LARGE}


def test_a_large_runs_teacher_shares_its_calls_and_not_its_directory(project: Path) -> None:
    """One ledger on storage that every node sees; the name decides the directory."""
    config = load_config(LARGE[0], ["recipe.generator=teacher", "run.name=by_teacher"])
    assert (config.run.dir, config.run.ledger) == ("/shared/shard_dist/runs/by_teacher", "/shared/shard_dist/ledger")


@pytest.mark.parametrize("file", CLUSTERS, ids=STEM)
def test_a_cluster_is_what_its_name_says_and_changes_no_result(file: Path) -> None:
    """Included last by any configuration; nodes by count and size, as in h100_4x8."""
    kind, _, sizes = file.stem.rpartition("_")
    count, size = map(int, sizes.split("x"))
    assert set(read_values(file)) <= {"include", "cluster"}
    bare = read_tree(CONFIGS / "demo.yaml", (), {})
    config = config_of(include(bare, file), file)
    nodes = config.cluster.nodes
    assert (nodes.count, nodes.gpus or nodes.cpus) == (count, size)
    assert bool(nodes.gpus) == (kind != "cpu") == bool(nodes.gpu_memory_gib * nodes.gpu_tflops * nodes.gpu_bandwidth)
    assert config.cluster.storage.path.startswith("/")
    assert identity(config) == identity(config_of(bare, file))


@pytest.mark.vllm
def test_vllm_knows_every_argument_of_its_engines(project: Path) -> None:
    """A misspelt one would be found on a GPU only, when an engine boots."""
    from vllm import AsyncEngineArgs

    known = {field.name for field in fields(AsyncEngineArgs)}
    for student in STUDENTS:
        for role, model in load_config(composed(project, OURS, student, TEACHER, JUDGE, GUARD)).models.items():
            assert set(model.engine_args) <= known, (student.stem, role)
