"""The configuration: every fault stops with the key, the file and the nearest spelling."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from shard_dist.config.load import as_dict, identity, load_config, redacted
from shard_dist.stages.generate import check as check_generate


def test_name_and_directory_follow_from_the_file(file: Path) -> None:
    config = load_config(file)
    assert (config.run.name, config.run.dir) == ("small", "runs/small")


def test_overrides_win_and_keep_their_neighbours(file: Path) -> None:
    config = load_config(
        file,
        [
            "train.learning_rate=3e-5",
            "models.student.engine_args.seed=7",
            "data.sources[0].limit=5",
            "models.teacher.model=t",
        ],
    )
    assert config.train.learning_rate == 3e-5
    assert config.models["student"].engine_args == {"seed": 7}
    assert (config.data.sources[0].limit, config.data.sources[0].hub) == (5, "some/data")
    assert config.models["teacher"].model == "t"


def test_a_list_given_in_an_override_replaces_the_old_one(file: Path, root: Path) -> None:
    source = root / "pyproject.toml"
    config = load_config(file, [f"data.sources=[{{kind: xstest, path: {source}}}]"])
    assert [(source.kind, source.hub) for source in config.data.sources] == [("xstest", "")]


def test_included_files_come_first_and_relative_to_the_includer(file: Path) -> None:
    (file.parent / "sub").mkdir()
    outer = file.parent / "sub" / "outer.yaml"
    outer.write_text("include: [../small.yaml]\nrun: {seed: 9}\nmodels: {student: {revision: abc}}\n")
    config = load_config(outer)
    assert (config.run.seed, config.run.name) == (9, "outer")
    assert (config.models["student"].model, config.models["student"].revision) == ("some/model", "abc")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("train.learnin_rate=1", "did you mean 'train.learning_rate'"),
        ("learning_rate=1", "did you mean 'train.learning_rate'"),
        ("models.student.modle=x", "did you mean 'models.student.model'"),
        ("recpe.name=x", "did you mean 'recipe'"),
        ("+train.epochs=1", "write 'train.epochs=1'"),
        ("train.epochs", "write key=value"),
        ("train.epochs=many", "train.epochs"),
        ("select.judge=oracle", "expected one of [rule, llm]"),
        ("data.sources[4].limit=1", "no entry 4; the list has 1"),
        ("data.split.val=0.9", "data.split"),
        ("train.global_batch_size=7 train.workers=2", "override"),
        ("train.loss_budget_gib=-1", "train.loss_budget_gib is -1"),
        ("models.student.engine_args.model=x", "set models.student.model instead"),
        ("models.student.model=./nowhere", "no config.json there"),
        ("recipe.generator=teacher", "models.teacher is missing"),
        ("recipe.templates=toy", "lacks judge_helpfulness.user.j2"),
        ("recipe.templates=nowhere", "no template set 'nowhere'; shipped sets: ['shard', 'toy']"),
        ("models.judge.backend=http", "models.judge.base_url"),
        ("models.student.backend=http", "cannot be trained"),
        ("data.sources=[]", "data.sources is empty"),
        ("data.sources=[{kind: table, path: missing.csv, columns: {text: t}}]", "no file 'missing.csv'"),
    ],
)
def test_a_faulty_override_is_refused_by_name(file: Path, word: str, expected: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        load_config(file, [word])
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {epochz: 1}", "did you mean 'train.epochs'"),
        ("train: 5", "TrainConfig"),
        ("- a list", "a configuration is a mapping"),
        ("train: {epochs: [", "is no valid YAML"),
        ("include: [nowhere.yaml]", "cannot read the configuration"),
        ("include: [self.yaml]", "includes itself"),
        ("run: {seed: 1}", "data.sources"),
    ],
)
def test_a_faulty_file_is_refused_by_name(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "self.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r".") as caught:
        load_config(path)
    assert expected in str(caught.value)
    assert "self.yaml" in str(caught.value)


def test_a_setting_without_effect_is_warned_of(file: Path) -> None:
    with pytest.warns(UserWarning, match=r"models\.teacher is used by nothing"):
        check_generate(load_config(file, ["models.teacher.model=x"]))
    with pytest.warns(UserWarning, match=r"train\.loss_budget_gib has no effect"):
        load_config(file, ["train.fused_loss=false", "train.loss_budget_gib=1"])


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("engines=0", "engines is 0; at least 1"),
        ("engines=3 max_engines=2", "max_engines is 2, fewer than models.judge.engines = 3"),
        ("max_engines=-1", "max_engines is -1"),
        ("window=-1", "window is -1"),
        ("boot_attempts=0", "boot_attempts is 0; at least 1"),
        ("max_deaths=0", "max_deaths is 0"),
        ("silent_timeout=0", "silent_timeout is 0.0; it must be above 0"),
        ("timeout=.nan", "timeout is nan"),
        ("cpus=0", "cpus is 0.0"),
        ("gpus=-1", "gpus is -1.0"),
        ("gpus=1.5", "gpus is 1.5; a whole number, or a share of one GPU"),
        ("engine_args.tensor_parallel_size=two", "engine_args.tensor_parallel_size is two"),
        ("engine_args.pipeline_parallel_size=0", "engine_args.pipeline_parallel_size is 0"),
        ("engine_args.data_parallel_size=2", "set models.judge.engines instead"),
        ("max_retries=-1", "max_retries is -1"),
        ("max_requests=-1", "max_requests is -1"),
        ("max_spend=-1", "max_spend is -1.0"),
        ("input_price=-1", "input_price is -1.0"),
        ("backend=http base_url=host:8000", "base_url: http needs the server's address"),
        ("backend=http base_url=http://host:port", "base_url: http needs the server's address"),
        ("backend=http base_url=http://h/v1 api_key_env=sk-private", "api_key_env holds no name"),
        ("backend=http base_url=http://h/v1 max_requests=2 engines=3", "max_requests is 2: 3 engines share it"),
        ("backend=fake fake.latency=-1", "fake.latency is -1.0; at least 0"),
        ("backend=fake fake.slots=-1", "fake.slots is -1"),
        ("backend=fake fake.mean_tokens=0", "fake.mean_tokens is 0.0; it must be above 0"),
        ("backend=fake fake.error_rate=1.5", "fake.error_rate is 1.5; a share from 0 to 1"),
        ("backend=fake fake.death_rate=0.6 fake.silence_rate=0.5", "death_rate and silence_rate is 1.1; at most 1"),
    ],
)
def test_a_setting_of_an_engine_out_of_range_is_refused(file: Path, word: str, expected: str) -> None:
    with pytest.raises(ValueError, match=r"^models\.judge\.") as caught:
        load_config(file, [f"models.judge.{part}" for part in word.split()])
    assert expected in str(caught.value)
    assert "sk-private" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("max_requests=5", "max_requests has no effect with backend vllm"),
        ("timeout=5", "timeout has no effect with backend vllm"),
        ("fake.latency=1", "fake has no effect with backend vllm"),
        ("backend=http base_url=http://h/v1 engine_args.seed=1", "engine_args has no effect with backend http"),
        ("backend=http base_url=http://h/v1 silent_timeout=9", "silent_timeout has no effect with backend http"),
        ("backend=http base_url=http://h/v1 max_spend=1", "max_spend has no effect without input_price"),
        ("backend=http base_url=http://h/v1 input_price=1", "output_price have no effect without max_spend"),
        ("backend=fake fake.mean_tokens=9", "fake.mean_tokens has no effect without step_seconds"),
    ],
)
def test_a_setting_of_an_engine_without_effect_is_warned_of(file: Path, words: str, expected: str) -> None:
    with pytest.warns(UserWarning, match=expected):
        load_config(file, [f"models.judge.{part}" for part in words.split()])


def test_a_template_that_names_an_unknown_variable_is_refused(file: Path, root: Path, tmp_path: Path) -> None:
    templates = tmp_path / "own"
    shutil.copytree(root / "shard_dist" / "prompts" / "templates" / "shard", templates)
    load_config(file, [f"recipe.templates={templates}"])
    (templates / "judge_harm.user.j2").write_text("{{ prompt }}\n{{ answer_c }}")
    with pytest.raises(ValueError, match=r"judge_harm\.user\.j2, line 2: unknown variable 'answer_c'; did you mean"):
        load_config(file, [f"recipe.templates={templates}"])


def test_secrets_are_redacted_wherever_they_hide() -> None:
    value = {
        "api_key": "abc",
        "env": {"HF_TOKEN": "abc", "PATH": "/bin"},
        "base_url": "http://user:pass@host/v1",
        "note": "use hf_abcdefghijkl",
        "api_key_env": "OPENAI_API_KEY",
        "max_tokens": 5,
        "tokenizer": "some/tokenizer",
    }
    text = yaml.safe_dump(redacted(value))
    assert "abc" not in text.replace("<redacted>", "")
    assert "user:pass" not in text
    for kept in ("OPENAI_API_KEY", "max_tokens: 5", "some/tokenizer", "/bin"):
        assert kept in text


def test_how_a_run_is_carried_out_is_no_part_of_its_identity(file: Path) -> None:
    same = [
        "models.student.engines=4",
        "models.student.max_engines=8",
        "models.student.silent_timeout=60",
        "models.student.fake.latency=1",
        "run.dir=elsewhere",
        "run.ledger=elsewhere",
        "cluster.boots_at_once=1",
        "train.checkpoint_every=7",
        "tracking.wandb=disabled",
    ]
    assert identity(load_config(file)) == identity(load_config(file, same))
    for other in (
        "recipe.answer_sampling.temperature=0.9",
        "models.student.fake.refusal_rate=0.1",
        "models.student.fake.mean_tokens=9",
        "models.student.revision=x",
    ):
        assert identity(load_config(file)) != identity(load_config(file, [other])), other


def test_the_resolved_tree_is_plain_data(file: Path) -> None:
    assert yaml.safe_load(yaml.safe_dump(as_dict(load_config(file))))["select"]["judge"] == "llm"
