"""The split is a function of a prompt's key and of nothing else."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.schema import SplitConfig
from shard_dist.data.split import position, split_of
from shard_dist.records import Prompt

SHARES = SplitConfig(val=0.1, test=0.2)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)


def prompt(id: str, dataset: str = "d", **fields) -> Prompt:
    return Prompt(dataset=dataset, id=id, text="t", **fields)


@given(NAMES, NAMES, st.integers(0, 2**64), st.sampled_from(["", "a", "b"]), st.sampled_from([None, 0, 3]))
def test_relabelling_a_prompt_does_not_move_it(dataset, id, seed, category, level):
    bare = split_of(prompt(id, dataset), SHARES, seed)
    assert split_of(prompt(id, dataset, category=category, level=level), SHARES, seed) == bare


@given(NAMES, st.lists(NAMES, min_size=2), st.integers(0, 9))
def test_a_group_is_in_one_split(group, ids, seed):
    assert len({split_of(prompt(id, group=group), SHARES, seed) for id in ids}) == 1


@given(NAMES, NAMES, st.integers(0, 9))
def test_positions_lie_in_the_unit_interval(dataset, unit, seed):
    assert 0 <= position(dataset, unit, seed) < 1


@given(st.integers(0, 10**6), st.integers(0, 9))
def test_ten_consecutive_ids_give_exactly_their_shares(tens, seed):
    splits = Counter(split_of(prompt(f"{tens or ''}{last}"), SHARES, seed) for last in range(10))
    assert splits == {"train": 7, "val": 1, "test": 2}


def test_ids_without_digits_come_near_their_shares():
    """4,000 names: three standard deviations are 0.019 for test and 0.014 for val."""
    splits = Counter(split_of(prompt(f"name-{n:b}".translate({48: "o", 49: "i"})), SHARES, 0) for n in range(4000))
    assert abs(splits["test"] / 4000 - 0.2) < 0.019
    assert abs(splits["val"] / 4000 - 0.1) < 0.014


def test_shares_between_tenths_are_met_too():
    """2,000 ids in blocks: one in ten is drawn for the half tenth, three standard deviations are 0.0106."""
    splits = Counter(split_of(prompt(str(n)), SplitConfig(val=0.1, test=0.25), 0) for n in range(2000))
    assert abs(splits["test"] / 2000 - 0.25) < 0.0105
    assert abs(splits["val"] / 2000 - 0.1) < 0.015


def test_each_id_is_uniform_over_seeds():
    """One id of a block, 2,000 seeds, in tenths: 27.9 is the 0.1 % point of chi-square with 9 degrees."""
    tenths = Counter(int(10 * position("d", "37", seed)) for seed in range(2000))
    assert sum((tenths[slot] - 200) ** 2 / 200 for slot in range(10)) < 27.9


def test_seed_and_data_set_change_the_split():
    ids = [str(number) for number in range(200)]
    one = [split_of(prompt(id), SHARES, 0) for id in ids]
    assert one != [split_of(prompt(id), SHARES, 1) for id in ids]
    assert one != [split_of(prompt(id, "other"), SHARES, 0) for id in ids]


def test_shares_of_nought_stay_empty():
    everything = [split_of(prompt(str(n)), SplitConfig(val=0, test=0), 0) for n in range(100)]
    assert set(everything) == {"train"}


def test_golden_split():
    """Made by this code once: a later rule that differs would move test prompts of old runs into training."""
    splits = [split_of(prompt(str(number), "do_not_answer"), SHARES, 42) for number in range(20)]
    letters = {"train": "-", "val": "v", "test": "T"}
    assert "".join(letters[name] for name in splits) == "-TT-----v------TT--v"
