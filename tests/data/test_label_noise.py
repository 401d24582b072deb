"""Labels that contradict the words of their texts are counted and named; what is only hard to tell is left alone."""

import json
import random

import numpy as np
import pytest

from ftengine.api import Table
from ftengine_builtins.audits.one_sided_labels import find_one_sided
from ftengine_builtins.audits.word_scores import WordRidge, tf_idf

TOPICS = ("sea", "wood", "stone", "wind", "fire")


def topical(count, seed=0, own=4, others=4):
    """Return distinct texts of a topic's words among everybody's, and their topics."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        topic = rng.choice(TOPICS)
        words = [f"{topic}{rng.randrange(9)}" for _ in range(own)] + [f"word{rng.randrange(99)}" for _ in range(others)]
        rows.append((" ".join([*rng.sample(words, len(words)), f"row{i}"]), topic))
    return rows


def flipped(rows, share, seed=0):
    """Return rows with another label in a share of them, and the numbers of these."""
    rng = random.Random(seed)
    wrong = set(rng.sample(range(len(rows)), round(share * len(rows))))
    names = sorted({label for _, label in rows})
    noisy = [
        (text, rng.choice([x for x in names if x != label]) if i in wrong else label)
        for i, (text, label) in enumerate(rows)
    ]
    return noisy, wrong


@pytest.fixture
def noise(write, label_task, audit):
    """Audit rows; return the finding on noise, None where there is none, and its table."""

    def noise(rows, **options):
        lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
        result = audit(label_task, write("a.jsonl", lines), only="label-noise", **options)
        found = result.findings
        tables = [one for one in result.displays if isinstance(one, Table) and one.title == "Labels that look wrong"]
        assert len(found) == len(tables) <= 1
        return (found[0], tables[0]) if found else (None, None)

    return noise


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_flipped_labels_are_counted_and_named(noise, share):
    rows = topical(400)
    noisy, wrong = flipped(rows, share)
    finding, table = noise(noisy, validation=0.2)
    assert (finding.kind, finding.level) == ("labels", "alarm")
    assert finding.figures["low"] <= share <= finding.figures["high"]
    assert all(place in finding.text for place in finding.places[:3])
    numbers = [int(place.rsplit(":", 1)[1]) - 1 for place in finding.places]
    assert sum(i in wrong for i in numbers) >= 0.9 * len(numbers)
    assert [place for place, *_ in table.rows] == list(finding.places)
    right = [
        given == noisy[i][1] and rather == rows[i][1] for i, (_, given, rather) in zip(numbers, table.rows, strict=True)
    ]
    assert sum(right) >= 0.9 * len(right)


def test_right_rows_whose_near_copies_are_wrong_are_not_named_first(noise):
    rows = topical(400)
    noisy, wrong = flipped(rows, 0.15)
    twins = [(f"{text} more", next(x for x in TOPICS if x != label)) for text, label in noisy[:40]]
    finding, _ = noise(noisy + twins, near_duplicates=None)
    numbers = [int(place.rsplit(":", 1)[1]) - 1 for place in finding.places[:10]]
    assert all(40 <= i < 400 and i in wrong for i in numbers)


def overlapping(count):
    """Return texts of two topics that differ in how often words occur, so that many could be of either."""
    rng = np.random.default_rng(0)
    chances = [np.exp(0.3 * rng.standard_normal(40)) for _ in range(2)]
    topics = rng.integers(2, size=count)
    words = [rng.choice(40, 8, p=chances[topic] / chances[topic].sum()) for topic in topics]
    return [
        (" ".join(f"w{x}" for x in row) + f" n{i}", f"t{topic}")
        for i, (row, topic) in enumerate(zip(words, topics, strict=True))
    ]


def rare(count):
    """Return texts of which one in 20 is urgent, and seven in ten of these say so."""
    rng = random.Random(0)
    return [
        (text + (" nobody answers" if i % 20 == 0 and rng.random() < 0.7 else ""), "urgent" if i % 20 == 0 else "usual")
        for i, (text, _) in enumerate(topical(count))
    ]


@pytest.mark.parametrize(
    "rows",
    [
        topical(400),
        topical(400, own=1, others=8),
        overlapping(600),
        rare(400),
        [(text, random.Random(text).choice("abc")) for text, _ in topical(400)],
        flipped(topical(100), 0.2)[0],
        [(text, float(i % 7) + 0.5) for i, (text, _) in enumerate(topical(400))],
        [(text, [label]) for text, label in flipped(topical(400), 0.2)[0]],
    ],
    ids=["clean", "hard", "overlapping", "rare", "random", "few", "numbers", "several"],
)
def test_nothing_is_reported_of_labels_that_are_not_shown_to_be_wrong(noise, rows):
    assert noise(rows) == (None, None)


def relabelled(rows, share, one, other):
    """Return rows with a share of those of one label given another, and the numbers of these."""
    rng = random.Random(0)
    wrong = {i for i, (_, label) in enumerate(rows) if label == one and rng.random() < share}
    return [(text, other if i in wrong else label) for i, (text, label) in enumerate(rows)], wrong


def test_rows_of_one_label_that_have_another_are_named_with_the_direction(noise):
    noisy, wrong = relabelled(topical(500), 0.3, "sea", "fire")
    finding, table = noise(noisy)
    assert (finding.kind, finding.level, finding.figures["one_sided"]) == ("labels", "alarm", ["fire", "sea"])
    true = len(wrong) / sum(label == "fire" for _, label in noisy)
    assert finding.figures["low"] <= true <= finding.figures["high"]
    numbers = {int(place.rsplit(":", 1)[1]) - 1 for place in finding.places}
    assert len(numbers & wrong) >= 0.9 * len(numbers) > 0
    assert {row[1:] for row in table.rows} == {("fire", "sea")}


def test_of_many_classes_the_confused_two_are_found():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(20), 50)
    labels = np.where((truth == 7) & (rng.random(1000) < 0.4), 8, truth)
    texts = [f"{' '.join(f'k{k}_{i}' for i in rng.integers(6, size=3))} w{rng.integers(99)}" for k in truth]
    found = find_one_sided(WordRidge(tf_idf(texts)), labels)
    assert (found.label, found.other) == (8, 7)
    assert found.low < (truth[labels == 8] == 7).mean() < found.high
    assert (truth[list(found.rows)] == 7).mean() >= 0.9


def test_rows_that_only_training_has_under_another_label_are_found(write, label_task, audit):
    rows = topical(680)
    noisy, _ = relabelled(rows[:400], 0.3, "sea", "fire")
    files = {"train": noisy, "validation": rows[400:480], "test": rows[480:]}
    for name, part in files.items():
        write(f"{name}.jsonl", "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in part))
    options = {name: f"{name}.jsonl" for name in ("validation", "test")}
    found = [one for one in audit(label_task, "train.jsonl", **options).findings if one.source == "label-noise"]
    assert [one.figures["one_sided"] for one in found] == [["fire", "sea"]]
    assert {place.split(":")[0] for place in found[0].places} == {"train.jsonl"}
