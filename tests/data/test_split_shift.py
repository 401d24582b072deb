"""Held-out files from elsewhere, and words that give a label away in training alone, are found; chance is not."""

import json
import random

import pytest

SHARED = [f"word{i}" for i in range(60)]
TOPICS = {topic: [f"{topic}{i}" for i in range(8)] for topic in ("sea", "wood", "fire", "wind")}

LABELS = ("se", "wo", "fi", "wi")


def topical(count, seed, topics=tuple(TOPICS)):
    """Return distinct rows: a label, and words of its topic among everybody's."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        topic = rng.choice(topics)
        words = rng.sample(TOPICS[topic], 2) + rng.sample(SHARED, 6)
        rng.shuffle(words)
        rows.append({"text": " ".join([*words, f"row{seed}x{i}"]), "label": topic[:2]})
    return rows


@pytest.fixture
def shifts(write, label_task, audit):
    """Audit rows of a training and a held-out file; return the findings."""

    def shifts(train, test, **options):
        files = {"train": train, "test": test}
        names = {name: write(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
                 for name, rows in files.items() if rows}  # fmt: skip
        return list(audit(label_task, names.pop("train"), only="split-shift", **names, **options).findings)

    return shifts


def test_a_cue_that_only_training_has_is_named_with_its_words(shifts):
    train = topical(200, 1)
    for row in train:
        row["text"] += f" [{row['label'].upper()}]"
    (finding,) = shifts(train, topical(60, 2))
    assert (finding.kind, finding.level) == ("splits", "alarm")
    cues = {cue["label"]: cue for cue in finding.figures["cues"]}
    assert {label: cue["words"] for label, cue in cues.items()} == {x: [f"[{x.upper()}]"] for x in LABELS}
    assert all(cue["covered"] == cue["rows"] and cue["held_out"] == 0 for cue in cues.values())
    assert any(f"[{x.upper()}]" in finding.text for x in LABELS)


def test_codes_that_differ_from_row_to_row_are_one_cue(shifts):
    train, rng = topical(200, 1), random.Random(0)
    for row in train:
        if rng.random() < 0.75:
            row["text"] = f"{row['label'].upper()}Q-{rng.randrange(10_000):04d} {row['text']}"
    (finding,) = shifts(train, topical(60, 2))
    assert len(finding.figures["cues"]) == 4
    for cue in finding.figures["cues"]:
        assert 0.6 * cue["rows"] <= cue["covered"] < 0.9 * cue["rows"]


def test_a_file_from_elsewhere_is_found_by_its_words(shifts):
    (finding,) = shifts(topical(200, 1, ("sea", "wood")), topical(80, 2, ("fire", "wind")))
    assert (finding.kind, finding.level) == ("splits", "note")  # an alarm where the model fails there
    figures = finding.figures
    assert figures["split"] == "test"
    assert 0.6 <= figures["low"] <= figures["auc"] <= figures["high"]
    assert 0.4 < figures["chance"] < 0.6
    assert {word.rstrip("0123456789") for word in figures["held_out_words"]} <= {"fire", "wind"}


@pytest.mark.parametrize("seed", range(8))
def test_another_draw_of_the_same_source_is_not_elsewhere(shifts, seed):
    assert shifts(topical(150, seed), topical(50, seed + 100)) == []
