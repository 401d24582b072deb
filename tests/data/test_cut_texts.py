"""Where the length limit cuts off what decides, that is found; where it cuts off what does not matter, it is not."""

import json
import random
from dataclasses import replace

import pytest

from ftengine.data.split import make_splits
from ftengine.run.recipe import DataSection
from ftengine_builtins.audits.cut_texts import CutTexts

KEYS = {"sea": 1.5, "wood": 2.25, "stone": 3.0, "wind": 4.75}
LIMIT, WORDS = 16, 64


@pytest.fixture
def cut_texts(write, label_task):
    """Return what the audit finds in texts of 64 words, of which a model reads 16; a word at a place decides."""

    def cut_texts(place, *, numbers=False, cut=1.0, in_front=False, count=200, told=1.0, splits=0.2):
        draw, rows = random.Random(0), []
        for _ in range(count):
            words = [f"word{draw.randrange(50)}" for _ in range(WORDS)]
            key = words[place] = draw.choice(list(KEYS))
            label = key if draw.random() < told else draw.choice(list(KEYS))
            rows.append({"text": " ".join(words), "label": KEYS[label] if numbers else label})
        name = write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        data = make_splits(DataSection(train=name, validation=splits), label_task, 0).audited()
        untruncated = {"50": WORDS, "95": WORDS, "100": WORDS}
        encoded = {"examples": count, "truncated": cut * count, "longest": LIMIT, "untruncated": untruncated}
        encoded["counts"] = {"cut_in_front": count} if in_front else {}
        return list(CutTexts().examine(replace(data, encoded={"train": encoded})))

    return cut_texts


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize(("place", "in_front"), [(-3, False), (2, True)])
def test_labels_that_the_cut_part_tells_are_an_alarm(cut_texts, place, in_front, numbers):
    (found,) = cut_texts(place, numbers=numbers, in_front=in_front)
    assert (found.kind, found.level) == ("data", "alarm")
    figures = found.figures
    assert figures["whole"] > 0.7 > 0.5 > figures["kept"]
    assert figures["other_end"] > 0.9  # there are fewer other words there
    assert ("task.truncate: right" if in_front else "task.truncate: left") in found.text
    assert {"quality", "learning"} <= set(found.explains)


@pytest.mark.parametrize(
    "case",
    [
        {"place": 2},  # what decides is kept
        {"place": -3, "in_front": True},
        {"place": -3, "told": 0.0},  # nothing decides
        {"place": -3, "cut": 0.1},
        {"place": -3, "count": 60, "splits": None, "told": 0.3},
    ],
)
def test_cutting_that_costs_nothing_is_not_reported(cut_texts, case):
    assert cut_texts(**case) == []
