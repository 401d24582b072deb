"""Audit `split-support`: what one file has and the other lacks."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from partly import partly

from ftengine.api import Task, View
from ftengine.data.split import make_splits
from ftengine.run.recipe import DataSection
from ftengine_builtins.audits import SplitSupport, split_support


@pytest.fixture
def found(write, label_task, audit):
    """Audit the numbers of a training and a test file."""

    def found(train, test):
        names = [write(f"{name}.jsonl", "".join(json.dumps({"text": f"flat {name} {i}", "label": value}) + "\n"
                                                for i, value in enumerate(values)))
                 for name, values in (("train", train), ("test", test))]  # fmt: skip
        return list(audit(label_task, names[0], test=names[1], only="split-support").findings)

    return found


def prices(count, seed):
    rng = random.Random(seed)
    return [round(rng.lognormvariate(5, 0.6), 1) + 0.05 for _ in range(count)]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("cap", "sign"), [(min, 250.5), (max, 100.5)])
def test_numbers_at_a_bound_that_the_other_file_passes_are_an_alarm(found, split, cap, sign):
    sides = {"train": prices(200, 1), "test": prices(100, 2)}
    sides[split] = [cap(value, sign) for value in sides[split]]
    (one,) = found(*sides.values())
    assert (one.kind, one.level, one.figures["split"], one.figures["capped"]) == ("splits", "alarm", "test", split)
    assert one.figures["bound"] == sign
    assert min(one.figures["share"], one.figures["beyond"]) > 0.1


@pytest.mark.parametrize("seed", range(10))
def test_numbers_of_one_source_and_bounds_that_all_files_have_are_not(found, seed):
    train, test = prices(200, seed), prices(100, seed + 50)
    assert found(train, test) == []
    assert found([min(value, 250.5) for value in train], [min(value, 250.5) for value in test]) == []


@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_beyond_the_range_of_training_are_an_alarm(found, sign):
    train, test = ([sign * value for value in prices(count, count)] for count in (300, 100))
    (one,) = found([value for value in train if abs(value) <= 200], test)
    assert (one.level, one.figures["split"], one.figures["capped"]) == ("alarm", "test", "train")
    assert one.figures["beyond"] > 0.2


def test_a_number_that_training_alone_has_often_is_an_alarm(found):
    train, test = prices(200, 1), prices(100, 2)
    (one,) = found([100.0 if i % 4 == 0 else value for i, value in enumerate(train)], test)
    assert (one.level, one.figures["default"], one.figures["share"]) == ("alarm", 100.0, 0.25)
    assert found([100.0 if i % 4 == 0 else value for i, value in enumerate(train)],
                 [100.0 if i % 4 == 0 else value for i, value in enumerate(test)]) == []  # fmt: skip


@pytest.mark.parametrize(("lacking", "named"), [("c", True), ("", False)])
def test_labels_that_training_lacks_are_an_alarm(found, lacking, named):
    labels = ["abcd"[i * 7 % 4] for i in range(200)]
    one = found([label for label in labels if label != lacking], labels[:80])
    assert [(x.level, x.figures["lacking"]) for x in one] == [("alarm", {"c": 20})] * named


def test_a_class_that_training_has_far_more_often_is_a_note(found):
    labels = ["abcd"[i * 7 % 4] for i in range(200)]
    (one,) = found(["a" if i % 3 else label for i, label in enumerate(labels)], labels[:120])
    assert (one.level, one.figures["frequent"]) == ("note", "a")
    assert found(["a" if i % 9 == 0 else label for i, label in enumerate(labels)], labels[:120]) == []


@partly
class SeveralTask(Task):
    """A text has several labels."""

    name = "several"

    def view(self, row):
        return View([row["text"]], row["label"], classes=True)


@pytest.mark.parametrize("left_out", ["train", "test", ""])
def test_one_of_several_labels_that_one_file_left_out_is_an_alarm(write, audit, left_out):
    rng, rows = random.Random(1), {"train": [], "test": []}
    for split, count in (("train", 160), ("test", 100)):
        for _ in range(count):
            labels = sorted(rng.sample("abcd", 2))
            text = f"{' '.join(f'{label}{rng.randrange(9)}' for label in labels)} {rng.randrange(10**9)}"
            kept = [label for label in labels if label != "c" or split != left_out or rng.random() < 0.2]
            rows[split].append(json.dumps({"text": text, "label": kept}) + "\n")
    names = [write(f"{split}.jsonl", "".join(of)) for split, of in rows.items()]
    found = audit(SeveralTask(), names[0], test=names[1], only="split-support").findings
    named = [(one.level, one.figures["label"], one.figures["left_out"]) for one in found]
    # Training with more of a label may have been drawn so on purpose.
    assert named == [("alarm" if left_out == "train" else "note", "c", left_out)] * bool(left_out)


@pytest.mark.parametrize(("region", "named"), [("US", True), ("EU", False)])
def test_a_column_whose_values_training_lacks_is_a_note(write, label_task, region, named):
    rows = {"train": ["EU", "CH"] * 50, "test": [region] * 40 + ["EU"] * 10}
    made = {name: [{"text": f"{name} {i}", "label": "ab"[i % 2], "region": x} for i, x in enumerate(of)]
            for name, of in rows.items()}  # fmt: skip
    names = [write(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in of)) for name, of in made.items()]
    data = make_splits(DataSection(train=names[0], validation=None, test=names[1]), label_task, 0).audited()
    data = replace(data, encoded={"train": {"unread": {"region": "train.jsonl:1"}}})
    result = [(one.level, one.figures["column"]) for one in SplitSupport().examine(data)]
    assert result == [("note", "region")] * named


def test_numbers_beyond_a_bound_are_counted_in_large_files_too():
    assert split_support._is_passed(np.arange(10_000.0), np.arange(9_500.0, 11_500.0), split_support.FREE_BEYOND)
