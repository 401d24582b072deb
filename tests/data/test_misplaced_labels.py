"""Labels of other rows, swapped classes, shuffled labels and other units are found before anything trains."""

import json
import math
import random

import pytest
from test_split_shift import topical

from ftengine_builtins.label_fit import CURVES


@pytest.fixture
def misplaced(write, label_task, audit):
    """Audit rows of a training and a held-out file; return the findings."""

    def misplaced(train, test, **options):
        names = {name: write(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
                 for name, rows in (("train", train), ("test", test)) if rows}  # fmt: skip
        return list(audit(label_task, names.pop("train"), only="misplaced-labels", **names, **options).findings)

    return misplaced


def graded(count, seed):
    """Return rows of which two words decide a number."""
    rng, grades = random.Random(seed), {"bad": -1.0, "fine": 0.5, "good": 1.0, "great": 2.5}
    rows = []
    for i in range(count):
        words = [*rng.choices(sorted(grades), k=2), *(f"word{rng.randrange(60)}" for _ in range(4))]
        number = sum(grades.get(word, 0.0) for word in words) + rng.gauss(0, 0.1)
        rows.append({"text": " ".join([*words, f"row{seed}x{i}"]), "label": round(number + 0.0001, 4)})
    return rows


def moved(rows, by):
    """Give each row the label of the row so far behind."""
    labels = [row["label"] for row in rows]
    return [row | {"label": labels[(i + by) % len(rows)]} for i, row in enumerate(rows)]


def shuffled(rows):
    labels = [row["label"] for row in rows]
    random.Random(0).shuffle(labels)
    return [row | {"label": label} for row, label in zip(rows, labels, strict=True)]


@pytest.mark.parametrize("make", [topical, graded])
@pytest.mark.parametrize("by", [-1, 1, 2])
def test_labels_of_other_rows_are_found_with_how_far_they_are_off(misplaced, make, by):
    (finding,) = misplaced(moved(make(150, 1), by), make(60, 2))
    assert (finding.kind, finding.level) == ("splits", "alarm")
    assert (finding.figures["split"], finding.figures["offset"]) == ("train", -by)
    assert finding.figures["fit"] > 0.5 > abs(finding.figures["own"])
    (finding,) = misplaced(make(150, 1), moved(make(60, 2), by))
    assert (finding.figures["split"], finding.figures["offset"]) == ("test", -by)
    assert "test.jsonl" in finding.text


def within(rows, start, stop, change):
    """Change the rows of a block alone."""
    return [*rows[:start], *change(rows[start:stop]), *rows[stop:]]


@pytest.mark.parametrize("make", [topical, graded])
def test_a_block_of_rows_whose_labels_slipped_is_named_with_its_rows(misplaced, make):
    train, test = make(240, 1), make(120, 2)
    slipped = [within(rows, len(rows) // 2, 5 * len(rows) // 6, lambda of: moved(of, 1)) for rows in (train, test)]
    for files, split, first, last in ((slipped[0], test), "train", 120, 199), ((train, slipped[1]), "test", 60, 99):
        (finding,) = misplaced(*files)
        assert (finding.level, finding.figures["split"], finding.figures["offset"]) == ("alarm", split, -1)
        assert finding.figures["first"] == pytest.approx(first, abs=8)
        assert finding.figures["last"] == pytest.approx(last, abs=8)
        assert f"{split}.jsonl:{finding.figures['first'] + 1} to {finding.figures['last'] + 1} " in finding.text


def by_default(rows, start):
    return [*rows[:start], *({**row, "label": rows[0]["label"]} for row in rows[start:])]


def test_rows_of_one_label_from_a_row_on_were_not_labelled(misplaced):
    train, test = topical(150, 1), topical(80, 2)
    for files in ((by_default(train, 90), test), (train, by_default(test, 40))):
        (finding,) = misplaced(*files)
        first = 90 if files[1] is test else 40
        level = "note" if files[1] is test else "alarm"  # in training a batch of one class may have been added
        assert (finding.level, finding.figures["default"]) == (level, files[files[1] is not test][0]["label"])
        assert first - 3 <= finding.figures["first"] <= first
    label = train[0]["label"]
    own = [row for row in topical(400, 3) if row["label"] == label][:60]
    assert misplaced([*train, *own], test) == []  # rows of one label that were added are of that label


@pytest.mark.parametrize("make", [topical, graded])
def test_labels_of_training_that_were_mixed_up_are_found(misplaced, make):
    (finding,) = misplaced(shuffled(make(200, 1)), make(100, 2))
    assert finding.level == "alarm"
    assert "mixed_up" in finding.figures


def test_labels_of_training_that_are_wrong_more_often_are_found(misplaced):
    draw, train, test = random.Random(0), topical(240, 1), topical(120, 2)
    names = sorted({row["label"] for row in train})
    wrong = [row | {"label": draw.choice(names)} if draw.random() < 0.35 else row for row in train]
    (finding,) = misplaced(wrong, test)
    assert (finding.level, finding.figures["split"]) == ("note", "train")  # training rows may be harder as well
    assert finding.figures["noise"] > finding.figures["held_out"] + 0.1
    assert misplaced(train, [row | {"label": draw.choice(names)} if draw.random() < 0.1 else row for row in test]) == []


@pytest.mark.parametrize("spoil", [lambda x: (x - 3) / 1.2, lambda x: (x + 4) / 12])
def test_numbers_that_one_file_has_scaled_are_an_alarm(misplaced, spoil):
    train, test = graded(200, 1), graded(120, 2)
    values = [row["label"] for row in train]
    mean, spread = sum(values) / 200, (sum((x - sum(values) / 200) ** 2 for x in values) / 200) ** 0.5
    low, high = min(values), max(values)
    scale = (lambda x: (x - mean) / spread) if spoil(3) == 0 else (lambda x: (x - low) / (high - low))
    rows = [row | {"label": 7 + 3 * row["label"]} for row in test]
    found = misplaced([row | {"label": round(scale(row["label"]), 4)} for row in train], rows)
    assert [(one.level, one.figures.get("scaled")) for one in found] == [("alarm", "train")]


def test_numbers_that_run_the_other_way_are_an_alarm(misplaced):
    (finding,) = misplaced(graded(150, 1), [row | {"label": 3 - row["label"]} for row in graded(80, 2)])
    assert (finding.level, finding.figures["split"]) == ("alarm", "test")
    assert finding.figures["correlation"] < -0.5 < 0.5 < finding.figures["training"]


def test_two_swapped_classes_are_named(misplaced):
    swap = {"se": "fi", "fi": "se"}
    (finding,) = misplaced(topical(150, 1), [row | {"label": swap.get(row["label"], row["label"])}
                                             for row in topical(80, 2)])  # fmt: skip
    assert {tuple(pair) for pair in finding.figures["swapped"]} == {("se", "fi"), ("fi", "se")}
    assert finding.figures["own"] < finding.figures["n"] / 4 < finding.figures["fit"]


def noted(count, seed, ruled=False):
    """Return rows whose words tell their topic; with `ruled` two of its sixteen words, or none for "art"."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        topic = rng.choice(("art", "law", "sea"))
        words = [f"{topic}{rng.randrange(16)}" for _ in range(4)] + [f"word{rng.randrange(60)}" for _ in range(3)]
        found = next((word[:3] for word in words if word[3:] in ("0", "1") and word[:3] in ("law", "sea")), "art")
        rows.append({"text": " ".join([*words, f"row{seed}x{i}"]), "label": found if ruled else topic})
    return rows


def test_labels_of_training_that_keywords_gave_are_found(misplaced):
    (finding,) = misplaced(noted(300, 1, ruled=True), noted(120, 2))
    assert (finding.level, finding.figures["split"], finding.figures["rule"]) == ("alarm", "test", True)
    assert finding.figures["own"] > finding.figures["right"] + 0.1


def test_codes_that_were_given_per_file_are_named(misplaced):
    codes, of_test = {"fi": 0, "se": 1, "wi": 2, "wo": 3}, {"fi": 0, "wi": 1, "wo": 2}
    train = [row | {"label": codes[row["label"]]} for row in topical(150, 1)]
    test = [row for row in topical(110, 2) if row["label"] in of_test]
    (finding,) = misplaced(train, [row | {"label": of_test[row["label"]]} for row in test])
    assert [tuple(pair) for pair in finding.figures["swapped"]] == [("1", "2"), ("2", "3")]
    assert finding.level == "alarm"
    assert misplaced(train, [row | {"label": codes[row["label"]]} for row in test]) == []


def rated(count, seed, more=0):
    """Return rows of grades 1 to 5, told by words of theirs and the next; raters may be more generous."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        grade = rng.randint(1, 5)
        words = [f"g{min(5, max(1, grade + rng.choice((0, 0, 0, 1, -1))))}x{rng.randrange(5)}" for _ in range(4)]
        rows.append({"text": f"{' '.join(words)} row{seed}x{i}", "label": str(min(5, max(1, grade + more)))})
    return rows


@pytest.mark.parametrize("more", [1, -1])
def test_raters_who_are_more_generous_are_a_note(misplaced, more):
    (finding,) = misplaced(rated(300, 1), rated(150, 2, more))
    assert (finding.level, finding.figures["grade"]) == ("note", more)


def test_labels_that_fit_by_chance_alone_are_named(misplaced):
    (finding,) = misplaced(topical(150, 1), shuffled(topical(80, 2)))
    assert finding.figures["right"] < 0.4 < finding.figures["training"]
    assert finding.figures["chance"] == pytest.approx(finding.figures["right"], abs=0.15)


@pytest.mark.parametrize(
    ("change", "unit"),
    [(lambda x: 100 * x, (100, 0)), (lambda x: 20 * x, (20, 0)), (lambda x: 1.8 * x + 32, (1.8, 32)),
     (lambda x: x + 3, None), (lambda x: 1.6 * x + 2, None), (lambda x: x**3, None)],
    ids=["per cent", "of five", "Fahrenheit", "plus", "dearer", "skewed"],
)  # fmt: skip
def test_numbers_of_another_unit_are_an_alarm_and_others_a_note(misplaced, change, unit):
    (finding,) = misplaced(graded(150, 1), [row | {"label": change(row["label"])} for row in graded(80, 2)])
    figures = finding.figures
    assert (figures["split"], finding.level) == ("test", "alarm" if unit else "note")
    assert figures["median"] != figures["training_median"]
    assert [figures[key] for key in ("factor", "plus") if key in figures] == pytest.approx(unit or [])


@pytest.mark.parametrize("curve", ["e to the power of", "the logarithm of"])
def test_numbers_that_are_a_function_of_those_of_training_are_an_alarm_that_names_it(misplaced, curve):
    train, test = ([row | {"label": 6 * row["label"] + 1} for row in graded(*drawn)] for drawn in ((150, 1), (80, 2)))
    if curve == "the logarithm of":
        train, test = ([row | {"label": math.exp(row["label"])} for row in rows] for rows in (train, test))
    (finding,) = misplaced(train, [row | {"label": float(CURVES[curve](row["label"]))} for row in test])
    assert (finding.level, finding.figures["curve"]) == ("alarm", curve)


@pytest.mark.parametrize("lost", ["train", "test"])
def test_numbers_that_lost_their_signs_are_an_alarm(misplaced, lost):
    files = {"train": graded(150, 1), "test": graded(80, 2)}
    files = {name: [row | {"label": row["label"] - 1.2} for row in rows] for name, rows in files.items()}
    assert misplaced(*files.values()) == []
    files[lost] = [row | {"label": abs(row["label"])} for row in files[lost]]
    (finding,) = misplaced(*files.values())
    assert (finding.level, finding.figures["split"], finding.figures["lost"]) == ("alarm", "test", lost)
    files[lost] = [row | {"label": 0.5 + 2 * abs(row["label"])} for row in files[lost]]  # of other sizes
    assert not any("lost" in finding.figures for finding in misplaced(*files.values()))


def twins(count, seed):
    """Return rows in groups: nearly equal texts that each have another label, in any order."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        text = " ".join(f"word{rng.randrange(600)}" for _ in range(14))
        rows += [{"text": f"{text} more{rng.randrange(600)} row{i}x{label}", "label": label}
                 for label in rng.sample("enc", 3)]  # fmt: skip
    return rows


def loose_twins(count, seed):
    """Return the same, which have only half of their words in common."""
    rng = random.Random(seed)
    return [row | {"text": f"{row['text']} {' '.join(f'other{rng.randrange(600)}' for _ in range(14))}"}
            for row in twins(count, seed)]  # fmt: skip


def acts(count, seed):
    """Return a dialogue: a question tells how it is answered, and less of what its own act is."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        asked = rng.choice(("do you", "what is"))
        words = [f"word{rng.randrange(60)}" for _ in range(10)]
        rows += [{"text": f"{asked} {' '.join(words[:5])} row{i}q", "label": rng.choice(("question", "check"))},
                 {"text": f"{' '.join(words[5:])} row{i}a", "label": f"to {asked}"}]  # fmt: skip
    return rows


@pytest.mark.parametrize("make", [twins, loose_twins, acts])
def test_labels_predicted_by_neighbouring_rows_are_not_misplaced(misplaced, make):
    assert misplaced(make(120, 1), None) == []


def against(count, seed, share):
    """Return rows of two labels with a word that goes with the label in a share of them."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        label = rng.randrange(2)
        cue = ("good", "bad")[label if rng.random() < share else 1 - label]
        words = " ".join(f"word{rng.randrange(60)}" for _ in range(6))
        rows.append({"text": f"{words} {cue} row{seed}x{i}", "label": "ab"[label]})
    return rows


def test_classes_are_not_swapped_where_words_mislead_by_design(misplaced):
    assert all("swapped" not in one.figures for one in misplaced(against(300, 1, 0.9), against(150, 2, 0.3)))
    assert "swapped" in misplaced(against(300, 1, 0.9), against(150, 2, 0.1))[0].figures


SOUND = {
    "sound": lambda make, seed: (make(150, seed), make(60, seed + 100)),
    "in order": lambda make, seed: [sorted(make(n, seed + n), key=lambda row: row["label"]) for n in (150, 60)],
    "no information": lambda make, seed: (shuffled(make(150, seed)), shuffled(make(60, seed + 100))),
    "another mix": lambda make, seed: (make(150, seed), [row for row in make(120, seed + 100) if row["text"] < "t"]),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [topical, graded])
@pytest.mark.parametrize("case", SOUND)
def test_labels_not_shown_to_be_misplaced_are_not_reported(misplaced, case, make, seed):
    assert misplaced(*SOUND[case](make, seed)) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_block_of_labels_at_random_did_not_slip(misplaced, seed):
    train = within(topical(150, seed), 60, 120, shuffled)
    assert not any("first" in finding.figures for finding in misplaced(train, topical(60, seed + 100)))


def test_where_texts_differ_too_labels_are_not_blamed(misplaced):
    assert misplaced(topical(150, 1, ("sea", "wood")), shuffled(topical(80, 2, ("fire", "wind")))) == []
