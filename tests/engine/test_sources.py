"""`data.train` of several sources: one run on all of them, each with its share of an epoch."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from expected import raises
from rows import write_rows
from runs import curve, interrupt
from transformers import AutoModelForCausalLM

from ftengine import fine_tune
from ftengine.api import SilentListener
from ftengine.data.encoding import EncodedSplit
from ftengine.data.mixed import SOURCE
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import prepare_data
from ftengine.errors import DataError, InputError, RecipeError
from ftengine.model import Criterion
from ftengine.plugins.registry import Registry
from ftengine.training.source_losses import SourceLosses


@pytest.fixture
def two(build_chat_recipe, chat_file, tmp_path):
    """Build a recipe for the 40 conversations and ten questions in another layout."""
    rows = [{"instruction": f"Add {n} and {n}, whatever it takes.", "output": f"It is {2 * n}."} for n in range(10)]
    other = write_rows(tmp_path / "sums.jsonl", rows)

    def build(first=None, second=None, **overrides):
        train = [{"source": str(chat_file), **(first or {})}, {"source": other, **(second or {})}]
        given = {"data__train": train, "data__near_duplicates": None, "output": str(tmp_path / "run")}
        return build_chat_recipe(**given | overrides)

    return build


def prepared(recipe):
    return prepare_data(Experiment.open(recipe, Registry(), SilentListener()))


def test_rows_of_several_sources_are_one_split_and_keep_their_places(two):
    data = prepared(two(data__validation=0.2))
    rows = data.splits.train
    assert len(rows) + len(data.splits.validation) == 50
    for number, row in enumerate(rows):
        assert row == rows[number]
        assert rows.where(number).rpartition(":")[0] == row[SOURCE]
    assert {row[SOURCE] for row in rows} == {one.source for one in rows.sources}
    told = data.encoded["train"].summary()["sources"]
    assert [one["rows"] for one in told] == [sum(row[SOURCE] == one["source"] for row in rows) for one in told]
    assert sum(one["tokens"] for one in told) == data.encoded["train"].summary()["tokens"]
    assert [one["an_epoch"] for one in told] == [one["examples"] for one in told]
    layouts = data.encoded["train"].summary()["counts"]
    assert layouts["layout.alpaca"] == told[1]["examples"]


def test_weights_are_shares_of_an_epoch_and_no_row_comes_more_than_once_more_than_another(two):
    data = prepared(two({"weight": 1}, {"weight": 3}, data__validation=None))
    train = data.encoded["train"]
    drawn = Counter()
    for epoch in range(4):
        members = np.concatenate(train.epoch(8, 5, epoch))
        assert [int((train.mixture.of[members] == n).sum()) for n in (0, 1)] == [13, 37]  # of 50: 12.5 and 37.5
        assert (np.concatenate(train.epoch(8, 5, epoch)) == members).all()
        drawn.update(members.tolist())
    for n in (0, 1):
        times = [drawn[i] for i in np.flatnonzero(train.mixture.of == n)]
        assert max(times) - min(times) <= 1
    findings = {f.figures["source"]: f for f in data.audit.findings if "times" in f.figures}
    assert [one.figures["times"] for one in findings.values()] == pytest.approx([13 / 40, 3.7])


@pytest.mark.slow
def test_a_run_measures_each_source_and_a_resumed_one_draws_the_same(two, tmp_path, monkeypatch):
    weights = {"first": {"weight": 1}, "second": {"weight": 1}}
    settings = {"train__checkpoint_every": 3, "train__max_steps": 8, "data__validation": 0.3, "train__epochs": 3}
    whole, sampled, sample = two(**weights, **settings, output=str(tmp_path / "whole")), [], EncodedSplit.sample
    monkeypatch.setattr(EncodedSplit, "sample", lambda self, *a: sampled.append(self.index) or sample(self, *a))
    run = fine_tune(whole)
    requires_losses_by_source(whole, run.path)
    train = prepared(whole).encoded["train"]
    first_epoch = np.concatenate(train.epoch(whole.train.batch_size, whole.seed, 0))
    assert sorted(sampled[0]) == sorted(set(train.index[first_epoch]))  # the training loss is of rows that were drawn
    assert len(sampled[0]) < len(train)
    slices = json.loads((tmp_path / "whole" / "evaluation.json").read_text())["slices"][SOURCE]["slices"]
    assert len(slices) == 2
    assert all(one["tuned"]["perplexity"]["value"] > 0 for one in slices)
    stopped = two(**weights, **settings, output=str(tmp_path / "stopped"))
    interrupt(stopped, after=5)
    assert curve(fine_tune(stopped, resume=True).path) == curve(run.path)


def requires_losses_by_source(recipe, path):
    """Look whether the first step's losses are the base's on each source's rows, and validation's those of slices."""
    names = [one.source for one in recipe.data.train]
    first, *_ = lines = curve(path)
    train = prepared(recipe).encoded["train"]
    members = train.epoch(recipe.train.batch_size, recipe.seed, 0)[0]
    base = AutoModelForCausalLM.from_pretrained(recipe.model.source).eval()
    for n, name in enumerate(names):
        own = members[train.sources[members] == n]
        told = train.task.predict(base, train.batch(own))
        mean = sum(one["loss"] for one in told) / sum(one["tokens"] for one in told)
        assert first[f"loss/{name}"] == pytest.approx(mean, rel=1e-4)
    validated = lines[-1]
    slices = json.loads((path / "evaluation.json").read_text())["slices"][SOURCE]["slices"]
    assert validated["step"] == 8
    for one in slices:
        assert validated[f"validation_loss/{one['value']}"] == pytest.approx(one["tuned"]["loss"]["value"], rel=1e-3)
    assert {f"training_loss/{name}" for name in names} <= validated.keys()


def test_losses_that_are_not_those_of_the_examples_are_reported_for_no_source(two):
    train = prepared(two(data__validation=None)).encoded["train"]
    losses, members = SourceLosses(train), np.arange(len(train))
    criterion = losses.noting(Criterion())
    count = int(train.weights.sum())
    values = criterion.single(torch.zeros(count, dtype=torch.int64), torch.randn(count, 3))
    sums = [float(one) for one in losses.sums(members, criterion)]
    total = float(values.sum())
    told = losses.means(members, sums, total, "loss/")
    assert list(told) == [f"loss/{one.source}" for one in train.rows.sources]
    assert losses.means(members, sums, 2 * total, "loss/") == {}
    fewer = losses.noting(Criterion())
    fewer.single(torch.zeros(3, dtype=torch.int64), torch.randn(3, 3))
    assert losses.means(members, [float(one) for one in losses.sums(members, fewer)], total, "loss/") == {}


def test_a_source_of_which_nothing_is_held_out_is_reported(two, tmp_path):
    alike = [{"prompt": "Who are you?", "completion": "Me."}] * 10  # twice what is held out, and they stay together
    one = write_rows(tmp_path / "one.jsonl", alike)
    data = prepared(two(second={"source": one}, data__validation=0.1))
    held = data.encoded["validation"].summary()["sources"]
    assert [row["examples"] for row in held] == [len(data.encoded["validation"]), 0]
    assert [f.figures for f in data.audit.findings if f.figures.get("validation") == 0] == [
        {"source": one, "validation": 0}
    ]
    (table,) = [one for one in data.audit.displays if one.title == "Sources of training"]
    assert [row[-1] for row in table.rows] == [row["examples"] for row in held]
    assert "its share of what is held out" in table.caption


def test_rounds_of_a_source_and_epochs_have_random_numbers_of_their_own(two, monkeypatch):
    train = prepared(two({"weight": 1}, {"weight": 3}, data__validation=None)).encoded["train"]
    seeds, make = set(), np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: seeds.add(tuple(seed)) or make(seed))
    for epoch in range(3):
        train.epoch(8, 5, epoch)
    assert len({make(seed).random() for seed in seeds}) == len(seeds) > 4


@pytest.mark.parametrize(
    ("train", "facts"),
    [
        ([], ("data.train",)),
        ([{"source": "a.jsonl", "wieght": 2}], ("'data.train.0.wieght'", "'weight'")),
        ([{"source": "a.jsonl", "weight": 0}], ("data.train.0.weight", "above 0")),
        (["a.jsonl", {"source": "b.jsonl", "weight": 2}], ("'a.jsonl' has no weight",)),
        (["a.jsonl", "a.jsonl"], ("'a.jsonl' is named twice",)),
        (["a.jsonl", "./a.jsonl"], ("'./a.jsonl' is named twice", "'a.jsonl'")),
        ([{"weight": 2}], ("'data.train.0.source'", "missing")),
    ],
)
def test_what_is_wrong_with_sources_is_one_error(build_chat_recipe, train, facts):
    with raises(RecipeError, *facts):
        build_chat_recipe(data__train=train)


def test_what_is_wrong_in_one_source_names_it(two, tmp_path, chat_file):
    with raises(InputError, "nothere.jsonl"):
        prepared(two(second={"source": "nothere.jsonl"}))
    with raises(InputError, "'alpcaa'"):
        prepared(two(second={"reader": "alpcaa"}))
    wrong = write_rows(tmp_path / "wrong.jsonl", [{"prompt": "Hi", "completion": "Hello", SOURCE: "me"}] * 3)
    with raises(DataError, "wrong.jsonl", f"'{SOURCE}'"):
        prepared(two(second={"source": wrong}))
    untrained = [
        {"messages": [{"role": "user", "content": f"Why {n}?"}, {"role": "assistant", "content": "So.", "weight": 0}]}
        for n in range(3)
    ]
    with raises(DataError, "sums.jsonl has weight 1 of 100,001"):
        prepared(two({"weight": 100_000}, {"weight": 1}, data__validation=None))
    nothing = write_rows(tmp_path / "nothing.jsonl", untrained)
    with raises(DataError, "nothing.jsonl"):
        prepared(two(second={"source": nothing}, data__validation=None))


def test_columns_and_a_reader_of_one_source_are_its_own(two, tmp_path):
    rows = [
        {"q": f"Why {n}?", "a": "So.", "talk": [{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": "!"}]}
        for n in range(5)
    ]
    other = write_rows(tmp_path / "other.jsonl", rows)
    for own, kind in (
        ({"columns": {"prompt": "q", "completion": "a"}}, "Why"),
        ({"reader": {"name": "sharegpt", "column": "talk"}}, "0?"),
    ):
        data = prepared(two(second={"source": other, **own}, data__validation=None))
        train = data.encoded["train"]
        last = next(number for number in range(len(train)) if train.rows[int(train.index[number])][SOURCE] == other)
        text = train.processor.decode(train.features(int(train.index[last])).inputs["input_ids"])
        assert re.search(re.escape(kind), text)
