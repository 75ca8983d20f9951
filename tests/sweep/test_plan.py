"""A sweep's file: every combination once, and whatever cannot be compared is refused by name before it starts."""

from __future__ import annotations

import datetime
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.load import identity
from shard_dist.sweep.plan import _axes, _combinations, load_sweep, value_name

SweepFile = Callable[..., Path]
RECIPE = {"self": {"recipe.generator": "student"}, "teacher": {"recipe.generator": "teacher"}}
SEEDS = {"recipe": RECIPE, "run.seed": [0, 1]}


def test_an_arm_is_a_whole_configuration_of_its_own(sweep_file: SweepFile, tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file({"axes": SEEDS}), ["recipe.answer_sampling.temperature=0.5"])
    assert [arm.name for arm in sweep.arms] == ["self-seed0", "self-seed1", "teacher-seed0", "teacher-seed1"]
    assert sweep.path == tmp_path / "sweep"
    for arm in sweep.arms:
        config = arm.config
        assert (config.recipe.generator, config.run.seed) == tuple(arm.settings.values())
        assert (config.run.name, config.run.dir) == (f"fake/{arm.name}", str(tmp_path / "sweep" / "arms" / arm.name))
        assert config.run.ledger == str(tmp_path / "sweep" / "ledger")
        assert config.data.split.seed == 0  # one test set for all
        assert config.recipe.answer_sampling.temperature == 0.5
    assert len({str(sorted(identity(arm.config).items())) for arm in sweep.arms}) == 4
    assert sweep.compare == (("self-seed0", "teacher-seed0"), ("self-seed1", "teacher-seed1"))


def test_the_split_and_the_ledger_may_be_the_files_own(sweep_file: SweepFile, tmp_path: Path) -> None:
    sections = {"data": {"split": {"seed": 7}}, "run": {"dir": str(tmp_path / "x"), "ledger": "memory://calls"}}
    for arm in load_sweep(sweep_file({"axes": SEEDS}, **sections)).arms:
        assert (arm.config.data.split.seed, arm.config.run.ledger) == (7, "memory://calls")


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
def test_combinations_less_excludes_plus_includes(sizes: list[int], data: Any) -> None:
    """Any product of axes: every combination once unless a rule names it, whose axes left out mean all values."""
    given_axes = {f"a{n}": {f"v{n}{value}": {f"x{n}": value} for value in range(size)} for n, size in enumerate(sizes)}
    axes = _axes(given_axes)
    values = {axis: st.sampled_from(sorted(names)) for axis, names in axes.items()}
    rules = data.draw(st.lists(st.fixed_dictionaries({}, optional=values).filter(bool), max_size=3))
    further = [{"name": f"more{n}", "settings": {}} for n in range(data.draw(st.integers(0, 2)))]
    with warnings.catch_warnings(action="ignore"):
        found = list(_combinations(axes, {"exclude": rules, "include": further}))
    names = [name for name, _, _ in found]
    left_out = {
        combination
        for rule in rules
        for combination in _product(axes)
        if rule.items() <= dict(zip(axes, combination, strict=True)).items()
    }
    assert len(names) == len(set(names)) == math.prod(sizes) - len(left_out) + len(further)
    assert not {tuple(name.split("-")) for name in names} & left_out
    for _, of, settings in found:
        assert settings == {f"x{axis[1:]}": int(name[2:]) for axis, name in of.items()}


def _product(axes: dict[str, Any]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]
    for names in axes.values():
        found = [(*before, name) for before in found for name in names]
    return found


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("run.seed", 0, "seed0"),
        ("train.learning_rate", 1e-5, "learning_rate1e_05"),
        ("models.student.model", "org/Some-Model 8B", "Some_Model_8B"),
        ("recipe.guidelines", True, "guidelinesTrue"),
        ("recipe.min_gain", None, "min_gainNone"),
        ("recipe.templates", "///", "value"),
    ],
)
def test_values_are_named_by_what_they_are(key: str, value: Any, name: str) -> None:
    assert value_name(key, value) == name


EXTRA = {"name": "hot", "settings": {"recipe.answer_sampling.temperature": 1.0}}


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({}, r"sweep\.axes is empty"),
        ({"axes": {}}, r"sweep\.axes is empty"),
        ({"axes": SEEDS, "exlude": []}, r"sweep: unknown 'exlude'; did you mean 'exclude'\?"),
        ({"axes": SEEDS, "exclude": {}, "include": {"a": 1}}, r"sweep\.include is a list"),
        ({"axes": {"run.seed": []}}, r"sweep\.axes\.run\.seed: a list of values, or a mapping"),
        ({"axes": {"run.seed": 3}}, r"sweep\.axes\.run\.seed: a list of values, or a mapping"),
        ({"axes": {"run.seed": [1, 1]}}, r"sweep\.axes\.run\.seed: two values would have one name"),
        ({"axes": {"run.sed": [0]}}, r"sweep arm sed0: .*unknown key 'run\.sed'; did you mean 'run\.seed'\?"),
        ({"axes": {"run.seed": ["x"]}}, r"sweep arm x: .*run\.seed: Value 'x'"),
        ({"axes": {"a": RECIPE, "b": RECIPE}}, r"sweep\.axes: a and b both set recipe\.generator"),
        ({"axes": {"a": RECIPE, "b": {"x": {"recipe": {"name": "shard"}}}}}, r"sweep\.axes: a and b both set recipe"),
        ({"axes": SEEDS, "exclude": [{"recipes": "self"}]}, r"exclude\[0\]: unknown 'recipes'; did you mean 'recipe'"),
        ({"axes": SEEDS, "exclude": [{"recipe": "selfs"}]}, r"exclude\[0\]\.recipe: unknown 'selfs'; did you mean"),
        ({"axes": SEEDS, "exclude": ["self"]}, r"exclude\[0\]: a mapping of axes to values"),
        ({"axes": SEEDS, "exclude": [{"recipe": ["self", "teacher"]}]}, r"sweep: no arm is left"),
        ({"axes": SEEDS, "include": [{"nam": "x"}]}, r"sweep\.include\[0\].*there are: name, settings"),
        ({"axes": SEEDS, "include": [{**EXTRA, "name": "self-seed0"}]}, r"two arms are called 'self-seed0'"),
        ({"axes": SEEDS, "include": [{**EXTRA, "name": "a/b"}]}, r"'a/b' cannot name an arm"),
        ({"axes": SEEDS, "include": [{"name": "again", "settings": {}}]}, r"arms self-seed0 and again are the same"),
        ({"axes": SEEDS, "compare": [["self-seed0", "teacher-seed"]]}, r"compare\[0\]: unknown 'teacher-seed'"),
        ({"axes": SEEDS, "compare": [["self-seed0"]]}, r"compare\[0\]: two names of arms"),
        ({"axes": SEEDS, "costs": {"gpu_hours": 1}}, r"sweep\.costs\.gpu_hours: .*there are: gpu_hour, "),
        ({"axes": {"data.split.test": [0.2, 0.3]}}, r"test0\.2 and test0\.3 differ in data\.split: their test sets"),
        ({"axes": {"run.dir": ["a", "b"]}}, r"sweep arm a: run\.dir is the sweep's own"),
        ({"axes": {"cluster.cpus": [1, 2]}}, r"sweep arm cpus1: cluster\.cpus is the sweep's own"),
        ({"axes": {"train.workers": [1, 2]}}, r"workers1 and workers2 are the same: no setting of results differs"),
        ({"axes": {"recipe.rounds": [1, 0]}}, r"sweep arm rounds0: recipe\.rounds is 0"),
        ({"axes": {"recipe.name": ["shard", "sharp"]}}, r"sweep arm sharp: recipe\.name: no recipe 'sharp'"),
        ({"axes": {"recipe.generator": ["student", "nobody"]}}, r"sweep arm nobody: models\.nobody is missing"),
        ({"axes": {"r": {"x": {"include": "a.yaml"}}}}, r"sweep\.axes\.r\.x\.include must be a list of file names"),
        ({"axes": {"r": {"x": {"include": ["no.yaml"]}}}}, r"sweep arm x: cannot read the configuration .*no\.yaml"),
        (
            {"axes": {"recipe": {"same": {**RECIPE["teacher"], "models.teacher.model": "some/student"}}}},
            r"sweep arm same: models\.teacher (is|and)",
        ),
    ],
)  # fmt: skip
def test_a_faulty_sweep_is_refused_by_name(sweep_file: SweepFile, sweep: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_sweep(sweep_file(sweep))


def test_names_need_not_be_words(sweep_file: SweepFile) -> None:
    """YAML reads 1 as a number, 2026-01-02 as a date and a bare key as null."""
    axes = {1: {2: {"run.seed": 2}, 3: None}, "day": {"x": {"tracking_": 0}}}
    with pytest.raises(ValueError, match=r"sweep arm 2-x: .*unknown key 'tracking_'; did you mean 'tracking'"):
        load_sweep(sweep_file({"axes": axes}))
    axes["day"] = {"x": {"recipe.templates": datetime.date(2026, 1, 2)}}
    with pytest.raises(ValueError, match=r"sweep arm 2-x: .*2026-01-02"):
        load_sweep(sweep_file({"axes": axes}))
    del axes["day"]
    (arm,) = load_sweep(sweep_file({"axes": axes, "exclude": [{1: 2}]})).arms
    assert (arm.name, arm.settings) == ("3", {})


def test_a_file_without_a_sweep_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(ValueError, match=r"demo\.yaml: a sweep's file has a key `sweep`"):
        load_sweep("configs/demo.yaml")


def test_an_exclude_that_leaves_nothing_out_is_warned_of(sweep_file: SweepFile) -> None:
    rules = [{"recipe": "self", "run.seed": 1}, {"recipe": "self", "run.seed": "seed1"}, {"run.seed": [0, 1]}]
    sweep = {"axes": {**SEEDS, "run.seed": [0, 1, 2]}, "exclude": rules}
    with pytest.warns(UserWarning, match=r"sweep\.exclude\[1\] leaves nothing out") as said:
        assert [arm.name for arm in load_sweep(sweep_file(sweep)).arms] == ["self-seed2", "teacher-seed2"]
    assert sum("leaves nothing out" in str(warning.message) for warning in said) == 1


def test_values_may_be_files_which_settings_and_the_command_line_overrule(
    sweep_file: SweepFile, tmp_path: Path
) -> None:
    (tmp_path / "hot.yaml").write_text(
        yaml.safe_dump({"recipe": {"answer_sampling": {"temperature": 1.0, "top_p": 0.9}}})
    )
    (tmp_path / "long.yaml").write_text(yaml.safe_dump({"recipe": {"answer_sampling": {"max_tokens": 50}}}))
    axes = {
        "heat": {"hot": {"include": ["hot.yaml"], "recipe.answer_sampling.top_p": 0.8}},
        "length": {"long": {"include": ["long.yaml"]}},
    }
    (arm,) = load_sweep(sweep_file({"axes": axes}), ["recipe.answer_sampling.temperature=0.7"]).arms
    sampling = arm.config.recipe.answer_sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.7, 0.8, 50)


def test_pairs_to_compare_are_as_given_else_within_one_student_and_seed(sweep_file: SweepFile) -> None:
    models = {"a": {"models.student.model": "some/a"}, "b": {"models.student.model": "some/b"}}
    axes = {"recipe": RECIPE, "student": models, "run.seed": [0]}
    assert load_sweep(sweep_file({"axes": axes})).compare == (
        ("self-a-seed0", "teacher-a-seed0"),
        ("self-b-seed0", "teacher-b-seed0"),
    )
    wanted = [["self-a-seed0", "self-b-seed0"]]
    assert load_sweep(sweep_file({"axes": axes, "compare": wanted})).compare == (("self-a-seed0", "self-b-seed0"),)


def test_warnings_that_all_arms_share_come_once(sweep_file: SweepFile, recwarn: pytest.WarningsRecorder) -> None:
    load_sweep(sweep_file({"axes": SEEDS, "include": [{"name": "rest", "settings": {"train.global_batch_size": 1}}]}))
    said = [str(warning.message) for warning in recwarn]
    assert sum("both the demo's rule judge" in text for text in said) == 1
    assert sum(text.startswith("sweep arms rest: train.workers is 2") for text in said) == 1
    assert not any("is used by nothing" in text for text in said)


def test_the_demos_sweep_is_six_arms(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its teacher is the model that the demo trained, for which another directory stands here."""
    monkeypatch.chdir(root)
    (tmp_path / "config.json").write_text("{}")
    sweep = load_sweep("configs/sweeps/demo.yaml", [f"models.teacher.model={tmp_path}"])
    recipes = {arm.values["recipe"]: arm.config.recipe for arm in sweep.arms}
    assert (len(sweep.arms), len({arm.student for arm in sweep.arms}), len(sweep.compare)) == (6, 1, 6)
    assert {name: (recipe.name, recipe.generator) for name, recipe in recipes.items()} == {
        "self": ("shard", "student"),
        "teacher": ("shard", "teacher"),
        "mixed": ("shard_mixed", "student"),
    }
