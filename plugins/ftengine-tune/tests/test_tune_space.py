"""Ranges and choices: how they are written, checked, and found where nothing is said."""

import json
import math
import sys
from pathlib import Path

import pytest
from expected import raises

from ftengine import Recipe, registry_of
from ftengine.errors import InputError
from ftengine_tune.division import _write, trial_recipe
from ftengine_tune.samplers import SAMPLERS, new_values
from ftengine_tune.space import Dimension, check_space, default_space, own_values, parse, read_space, with_values


def recipe(**strategy):
    content = {"model": {"source": "missing"}, "task": "causal-lm", "data": {"train": "missing.jsonl"}}
    return Recipe.make({**content, "strategy": {"name": "lora", **strategy}})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1e-5..1e-3:log", (1e-5, 1e-3, True)),
        ("1..8", (1, 8, False)),
        ("0..0.2", (0, 0.2, False)),
        ("2 .. 64 :log", (2, 64, True)),
    ],
)
def test_ranges(text, wanted):
    dimension = parse("train.learning_rate", text, "here")
    assert (dimension.low, dimension.high, dimension.log) == wanted
    assert (type(dimension.low), type(dimension.high)) == tuple(map(type, wanted[:2]))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("4,8,16", (4, 8, 16)), ("cosine, linear", ("cosine", "linear")), ([True, False], (True, False))],
)
def test_choices(text, wanted):
    assert parse("train.schedule", text, "here").choices == wanted


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("train.learning_rate", "1e-3..1e-5", "low end"),
        ("train.learning_rate", "1e-3..1e-3", "is empty"),
        ("train.learning_rate", "0..1:log", "above 0"),
        ("train.learning_rate", "1e-5", "a range"),
        ("train.learning_rate", "1..x", "a range"),
        ("train.learning_rate", "[1", "a range"),
        ("train.learning_rate", "1,2020-13-45", "a range"),
        ("data.train", "a,b", "'data.train' cannot be searched"),
        ("seed", "1..5", "'seed' cannot be searched"),
    ],
)
def test_what_is_no_range_is_refused(key, text, message):
    with raises(InputError, "here: ", message) as raised:
        parse(key, text, "here")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_proposed_values_lie_in_their_range_with_four_digits(sampler):
    if sampler == "tpe":
        pytest.importorskip("optuna")
    space = [parse("train.learning_rate", "1.23456e-5..1e-3:log", ""), parse("strategy.rank", "2..64:log", "")]
    space.append(parse("train.schedule", "cosine,linear", ""))
    earlier = []
    for seed in range(30):
        values = SAMPLERS[sampler](space, earlier, seed)
        assert values == SAMPLERS[sampler](space, earlier, seed)  # so that a search that goes on proposes the same
        rate, rank, schedule = values.values()
        assert 1.23456e-5 <= rate <= 1e-3
        assert rate in (float(f"{rate:.4g}"), 1.23456e-5)
        assert isinstance(rank, int)
        assert 2 <= rank <= 64
        assert schedule in ("cosine", "linear")
        earlier.append((values, None if seed % 5 == 4 else abs(math.log(rate / 1e-4))))
    assert len({str(values) for values, _ in earlier}) == 30


def test_tpe_goes_by_the_losses_of_earlier_trials():
    pytest.importorskip("optuna")
    space, earlier = [parse("train.learning_rate", "1e-5..1e-1:log", "")], []
    for seed in range(40):
        values = SAMPLERS["tpe"](space, earlier, seed)
        earlier.append((values, abs(math.log(values["train.learning_rate"] / 1e-2))))
    first, last = ([loss for _, loss in part] for part in (earlier[:10], earlier[-10:]))
    assert sum(last) < sum(first) / 2


def test_whole_numbers_on_a_log_scale_reach_both_ends():
    space = [parse("strategy.rank", "1..4:log", "")]
    drawn = {SAMPLERS["random"](space, [], seed)["strategy.rank"] for seed in range(100)}
    assert drawn == {1, 2, 3, 4}


def test_no_two_trials_have_the_same_values():
    space, earlier = [parse("strategy.rank", "1..3", ""), parse("train.schedule", "cosine,linear", "")], []
    while values := new_values("random", space, earlier, (0, len(earlier))):
        earlier.append((values, 0.0))
    assert len({str(values) for values, _ in earlier}) == len(earlier) == 6


def test_tpe_without_optuna_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with raises(InputError, "optuna", "--sampler random"):
        SAMPLERS["tpe"]([parse("strategy.rank", "1..4", "")], [], 0)


def test_the_default_search_space():
    dimensions = default_space(recipe(rank=8), registry_of().get("strategy", "lora").cls.Config)
    assert [(one.key, one.low, one.high, one.log) for one in dimensions] == [
        ("train.learning_rate", 2e-5, 2e-3, True),
        ("strategy.rank", 2, 32, True),
        ("strategy.dropout", 0.0, 0.2, False),
    ]
    check_space(recipe(rank=8), dimensions, registry_of())
    full = default_space(recipe(), registry_of().get("strategy", "full").cls.Config)
    assert [one.key for one in full] == ["train.learning_rate"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ([Dimension("train.learning_rte", 0.1, 0.2)], "learning_rte"),
        ([Dimension("strategy.rnk", 1, 2)], "'strategy.rnk'"),
        ([Dimension("strategy.dropout", 0.0, 1.5)], "dropout"),
        ([Dimension("strategy.rank", 1.5, 2.5)], "rank"),
        ([Dimension("strategy.rank", 1, 2)] * 2, "searched twice"),
        ([Dimension("train.schedule", choices=("cosine", "cosinus"))], "'cosinus'"),
    ],
)
def test_keys_and_values_that_the_recipe_does_not_take_are_refused(space, message):
    with raises(InputError, message) as raised:
        check_space(recipe(), space, registry_of())
    assert "\n" not in str(raised.value)


def test_the_recipes_own_values_are_found_where_the_ranges_hold_them():
    space = [parse("train.learning_rate", "1e-5..1e-3:log", ""), parse("strategy.rank", "4,8", "")]
    assert own_values(recipe(), space, registry_of()) == {"train.learning_rate": 2e-4, "strategy.rank": 8}
    assert own_values(recipe(rank=16), space, registry_of()) is None
    schedules = [parse("train.schedule", "cosine,auto", "")]
    assert own_values(recipe(), schedules, registry_of()) == {"train.schedule": "auto"}
    assert with_values(recipe(), {"strategy.rank": 4, "train.learning_rate": 0.1}).strategy["rank"] == 4


def test_a_file_holds_the_same(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("train.learning_rate: 1e-5..1e-3:log\nstrategy.rank: [4, 8]\n", encoding="utf-8")
    assert read_space(file) == [parse("train.learning_rate", "1e-5..1e-3:log", ""), parse("strategy.rank", "4,8", "")]
    file.write_text("[1, 2]", encoding="utf-8")
    with raises(InputError, "a mapping"):
        read_space(file)
    with pytest.raises(InputError):
        read_space(tmp_path / "missing.yaml")


def test_a_trial_reads_the_divided_rows_without_excluding_again(tmp_path):
    excluding = Recipe.make(recipe().resolved(), ["data.exclude=excluded.jsonl"])
    of_trial = trial_recipe(excluding, {"train": tmp_path / "a.jsonl", "validation": tmp_path / "b.jsonl"}, tmp_path)
    assert (of_trial.data.train, of_trial.data.exclude) == (str(tmp_path / "a.jsonl"), None)


def test_divided_rows_name_files_that_hold_from_anywhere(tmp_path):
    task, address = registry_of().build("task", {"name": "image-classification"}, "task"), "https://example.org/a.png"
    _write(tmp_path / "rows.jsonl", [{"image": "a.png"}, {"image": address}, {"image": None}], task)
    rows = [json.loads(line)["image"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows == [str(Path("a.png").resolve()), address, None]
