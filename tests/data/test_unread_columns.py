"""Columns that nothing reads: ids on both sides of a split, annotators who confuse labels, units, and the texts."""

import json
import math
import random
from dataclasses import replace

import pytest
from partly import partly
from test_misplaced_labels import graded
from test_split_shift import topical

from ftengine.api import Task, View
from ftengine.data.split import make_splits
from ftengine.run.recipe import DataSection
from ftengine_builtins.audits import (
    GroupLabels,
    LabelsByColumn,
    PairsByColumn,
    UnreadColumns,
    UnreadGroups,
    pairs_by_column,
)


@pytest.fixture
def unread(write, label_task):
    """Return what an audit finds in rows, of which all columns but `text` and `label` are unread."""

    def unread(audit, rows, test=0.3, task=label_task, **options):
        name = write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        if isinstance(test, list):
            test = write("test.jsonl", "".join(json.dumps(row) + "\n" for row in test))
        section = DataSection(train=name, validation=None, test=test, near_duplicates=None, **options)
        data = make_splits(section, task, 0).audited()
        names = [name for name in rows[0] if name not in ("text", "label", "chosen", "rejected")]
        return list(audit().examine(replace(data, encoded={"train": {"unread": dict.fromkeys(names, "a.jsonl:1")}})))

    return unread


def of_patients(count=60, notes=5, label=lambda patient, draw: draw.choice("ab"), name=lambda i: f"P{i:03d}"):
    draw, rows = random.Random(0), []
    for patient in range(count):
        outcome = label(patient, draw)
        for note in range(notes):
            of_note = outcome if outcome is not None else draw.choice("ab")
            rows.append({"text": f"note {patient * 10 + note}", "label": of_note, "patient": name(patient)})
    draw.shuffle(rows)
    return rows


@pytest.mark.parametrize("name", [lambda i: f"P{i:03d}", lambda i: (i * 37) % 101])
def test_ids_of_one_label_each_on_both_sides_of_the_split_lead_to_a_group(unread, name):
    rows = of_patients(name=name)
    (found,) = unread(UnreadGroups, rows)
    assert (found.level, found.figures["column"], found.figures["of_label"]) == ("alarm", "patient", 1.0)
    assert found.figures["shared"] > 0.9 * found.figures["rows"]
    assert "data.group: patient" in found.brief
    assert unread(UnreadColumns, rows) == []  # which would have the id written into the text
    assert unread(UnreadGroups, rows, group="patient") == []


@pytest.mark.parametrize(
    "rows",
    [
        of_patients(notes=1, count=300),
        of_patients(label=lambda patient, draw: None),  # a label for each row
        of_patients(name=lambda i: f"topic {i % 5}", label=lambda patient, draw: "ab"[patient % 5 > 2]),
        of_patients(name=lambda i: 20 + i, label=lambda patient, draw: "ab"[patient > 30]),  # an age
        of_patients(label=lambda patient, draw: "a"),
    ],
)
def test_columns_that_are_no_groups_of_one_label_are_left_alone(unread, rows):
    assert unread(UnreadGroups, rows) == []


def of_pains(between, within, name, count=40, notes=8):
    """Return rows with a number each, of which so much varies between patients and within one."""
    draw = random.Random(0)
    means = [draw.gauss(50, between) for _ in range(count)]
    rows = of_patients(count, notes, label=lambda patient, draw: patient, name=name)
    return [row | {"label": means[row["label"]] + draw.gauss(0, within) + 0.01} for row in rows]


@pytest.mark.parametrize(
    ("between", "within", "name", "is_group"),
    [
        (20, 6, lambda i: f"P{i:03d}", True),
        (6, 20, lambda i: f"P{i:03d}", False),
        (0, 20, lambda i: (i * 37) % 101, False),
    ],
)
def test_ids_of_near_numbers_lead_to_a_group(unread, between, within, name, is_group):
    rows = of_pains(between, within, name)
    found = unread(UnreadGroups, rows)
    assert len(found) == is_group
    if found:
        assert (found[0].level, found[0].figures["column"]) == ("alarm", "patient")
        assert found[0].figures["of_variance"] == pytest.approx(between**2 / (between**2 + within**2), abs=0.1)


@pytest.mark.parametrize(("name", "is_group"), [(lambda i: f"P{i:03d}", True), (lambda i: f"town{chr(97 + i)}", False)])
def test_ids_that_the_words_tell_lead_to_a_group_and_kinds_of_rows_do_not(unread, name, is_group):
    rows = of_pains(20, 6, name, count=24, notes=12)
    assert len(unread(UnreadGroups, [row | {"text": f"{row['text']} of {row['patient']}"} for row in rows])) == is_group


def test_numbers_that_grow_with_an_age_are_no_group(unread):
    rows = of_pains(0, 1, lambda i: 20 + i)
    assert unread(UnreadGroups, [row | {"label": row["label"] + 2.0 * row["patient"]} for row in rows]) == []


@pytest.mark.parametrize(("count", "notes", "is_group"), [(25, 12, False), (60, 5, True)])
def test_a_finer_label_that_the_words_tell_is_no_group_and_a_dialogue_on_one_topic_is(unread, count, notes, is_group):
    rows = of_patients(count, notes, name=lambda i: f"{chr(97 + i // 26)}{chr(97 + i % 26)}")
    for row in rows:
        row["text"] += f" about {row['patient']}"
    assert len(unread(UnreadGroups, rows)) == is_group


def annotated(count=360, carl=lambda label, draw: label, **column):
    draw = random.Random(1)
    rows = topical(count, 1)
    for row in rows:
        row["annotator"] = draw.choice(["anna", "ben", "carl"])
        row["label"] = carl(row["label"], draw) if row["annotator"] == "carl" else row["label"]
    return rows


def exchanged(label, draw):
    return {"se": "wo", "wo": "se"}.get(label, label)


def guessed(label, draw):
    return label if draw.random() < 0.5 else draw.choice(["se", "wo", "fi", "wi"])


@pytest.mark.parametrize("carl", [exchanged, guessed])
@pytest.mark.parametrize("name", ["carl", ""])
def test_the_annotator_whose_labels_the_texts_contradict_is_named(unread, carl, name):
    rows = annotated(carl=carl)
    for row in rows:
        row["annotator"] = name if row["annotator"] == "carl" else row["annotator"]
    (found,) = unread(LabelsByColumn, rows)
    assert (found.kind, found.level) == ("labels", "alarm")
    assert (found.figures["column"], found.figures["value"]) == ("annotator", name)
    assert found.figures["share"] > 0.25 > 0.15 > found.figures["others"]
    if carl is exchanged:
        assert {pair[:2] for pair in found.figures["confused"]} == {("se", "wo"), ("wo", "se")}


def sure_labels(i, draw):
    return round(draw.uniform(0.2, 1), 2)


def dates(i, draw):
    return f"2024-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}"


@pytest.mark.parametrize(("column", "value", "bound"), [("confidence", sure_labels, 0.5), ("day", dates, "2024-05")])
@pytest.mark.parametrize("wrong", [True, False])
def test_rows_below_a_number_or_before_a_day_whose_labels_are_guessed_are_named(unread, column, value, bound, wrong):
    draw, rows = random.Random(1), topical(400, 1)
    for i, row in enumerate(rows):
        row[column] = value(i, draw)
        row["label"] = draw.choice(["se", "wo", "fi", "wi"]) if wrong and row[column] < bound else row["label"]
    found = unread(LabelsByColumn, rows)
    assert [(one.level, one.figures["column"]) for one in found] == [("alarm", column)] * wrong


@pytest.mark.parametrize("misled", [0.5, 0.65])
def test_harder_texts_of_two_classes_are_named_without_classes_that_are_exchanged(unread, misled):
    draw, rows = random.Random(1), topical(360, 1, topics=("sea", "wood"))
    for row in rows:
        row["difficulty"] = draw.choice(["easy", "easy", "hard"])
        if row["difficulty"] == "hard" and draw.random() < misled:
            row["label"] = next(other["label"] for other in rows if other["label"] != row["label"])
    (found,) = unread(LabelsByColumn, rows)
    assert found.figures["value"] == "hard"


def of_aspects(count=200):
    draw, rows = random.Random(1), []
    words = {"food": ["tasty", "bland"], "service": ["kind", "rude"], "price": ["cheap", "dear"]}
    for i in range(count):
        grades = {aspect: draw.randrange(2) for aspect in draw.sample(list(words), 2)}
        text = " ".join([f"word{i * 7919 % 997}", *(f"{aspect} {words[aspect][grades[aspect]]}" for aspect in grades)])
        rows += [{"text": text, "label": "pn"[grade], "aspect": aspect} for aspect, grade in grades.items()]
    return rows


def noisy_everywhere():
    draw, rows = random.Random(2), annotated()
    for row in rows:
        row["label"] = guessed(row["label"], draw)
    return rows


def by_label():
    """The column is nearly the label: rows of one value have hardly any other."""
    draw, rows = random.Random(2), topical(360, 1)
    for row in rows:
        row["source"] = row["label"] if draw.random() < 0.8 else draw.choice(["se", "wo", "fi", "wi"])
    return rows


def of_other_texts():
    """One source writes of the same labels in words of its own, which others' rows teach nothing about."""
    rows = [row | {"source": "news"} for row in topical(240, 1)]
    own = {"sea": "blue", "wood": "green", "fire": "red", "wind": "grey", "word": "x"}
    for row in topical(120, 2):
        for word, other in own.items():
            row["text"] = row["text"].replace(word, other)
        rows.append(row | {"source": "chat"})
    return rows


@pytest.mark.parametrize(
    "rows", [annotated(), noisy_everywhere(), by_label(), of_other_texts(), annotated(70), of_aspects()]
)
def test_labels_that_are_no_worse_for_a_value_are_left_alone(unread, rows):
    assert unread(LabelsByColumn, rows) == []


def in_clinics(nord, count=300, spread=0.0):
    draw = random.Random(3)
    rows = graded(count, 1)
    for row in rows:
        row["clinic"] = draw.choice(["Nord", "West", "Ost"])
        row["label"] = round((row["label"] + 4) * math.exp(draw.gauss(0, spread)) + 0.0001, 4)
        row["label"] = nord(row) if row["clinic"] == "Nord" else row["label"]
    return rows


def test_the_wave_whose_scale_runs_the_other_way_is_named(unread):
    rows = [row | {"wave": ["first", "second", "third"][i % 3]} for i, row in enumerate(graded(300, 1))]
    assert unread(LabelsByColumn, rows) == []
    turned = [row | {"label": 3.0 - row["label"]} if row["wave"] == "second" else row for row in rows]
    (found,) = unread(LabelsByColumn, turned)
    assert (found.level, found.figures["column"], found.figures["value"]) == ("alarm", "wave", "second")
    assert found.figures["correlation"] < -0.5 < 0.5 < found.figures["others"]


def test_the_clinic_whose_numbers_are_in_another_unit_is_named(unread):
    (found,) = unread(LabelsByColumn, in_clinics(lambda row: round(24 * row["label"] + 0.001, 3)))
    assert (found.kind, found.level, found.figures["factor"]) == ("labels", "alarm", 24)
    assert (found.figures["column"], found.figures["value"]) == ("clinic", "Nord")
    (found,) = unread(LabelsByColumn, in_clinics(lambda row: row["label"] / 60))
    assert found.figures["factor"] == pytest.approx(1 / 60)


def batches(rows, odd, share, change):
    draw = random.Random(4)
    for row in rows:
        row["batch"] = odd if draw.random() < share else {"a": "b", "b": "a"}[odd]
        row["label"] = change(row["label"]) if row["batch"] == odd else row["label"]
    return rows


@pytest.mark.parametrize("odd", ["a", "b"])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_rarer_of_two_batches_is_named_and_both_where_either_may_be_odd(unread, odd, share):
    prices = [row | {"label": row["label"] + 4.0001} for row in graded(300, 1)]
    (numbers,) = unread(LabelsByColumn, batches(prices, odd, share, lambda price: 100 * price))
    (labels,) = unread(LabelsByColumn, batches(topical(360, 1), odd, share, lambda label: exchanged(label, None)))
    for found in (numbers, labels):
        if share < 0.5:
            assert found.figures["value"] == odd
        assert ("“a”" in found.brief and "“b”" in found.brief) == (share == 0.5)


@pytest.mark.parametrize("odd", ["a", "b"])
def test_rows_without_a_value_are_the_other_of_two(unread, odd):
    rows = batches(topical(360, 1), odd, 0.5, lambda label: exchanged(label, None))
    (found,) = unread(LabelsByColumn, [row | {"batch": "a" if row["batch"] == "a" else None} for row in rows])
    assert "“a”" in found.brief
    assert "blank" in found.brief


def of_other_words(row):
    row["text"] = row["text"].replace("word", "other")
    return 24 * row["label"]


@pytest.mark.parametrize(
    "nord",
    [lambda row: row["label"], lambda row: row["label"] + 3, lambda row: 2 * row["label"],
     lambda row: 100 + row["label"], of_other_words],
)  # fmt: skip
def test_numbers_that_are_merely_larger_are_left_alone(unread, nord):
    assert unread(LabelsByColumn, in_clinics(nord)) == []


@pytest.mark.parametrize(("factor", "spread"), [(13, 0.0), (8.3, 0.0), (24, 2.0)])  # the last's median is unsure
def test_a_ratio_that_is_no_unit_is_a_note(unread, factor, spread):
    (found,) = unread(LabelsByColumn, in_clinics(lambda row: factor * row["label"], spread=spread))
    assert found.level == "note"
    assert "factor" not in found.figures
    assert max(found.figures["ratio"], 1 / found.figures["ratio"]) > 5


def described(rows, description):
    return [{"text": f"CASE-{i * 7919 % 9973}", "label": row["label"], "description": description(row, i)}
            for i, row in enumerate(rows)]  # fmt: skip


@pytest.mark.parametrize("make", [topical, graded])
def test_the_unread_text_whose_words_tell_the_label_is_named(unread, make):
    (found,) = unread(UnreadColumns, described(make(300, 1), lambda row, i: row["text"]))
    assert (found.level, found.figures["column"]) == ("alarm", "description")
    assert found.figures["low"] > 0.6 > 0.4 > found.figures["words"]


@pytest.mark.parametrize(
    "rows",
    [
        [row | {"description": row["text"]} for row in topical(300, 1)],  # it repeats what is read
        [row | {"description": f"{row['text']} and more words"} for row in graded(300, 1)],
        described(topical(300, 1), lambda row, i: topical(1, i)[0]["text"]),  # it tells nothing either
        described(topical(60, 1), lambda row, i: row["text"]),
    ],
)
def test_unread_texts_that_tell_no_more_are_left_alone(unread, rows):
    assert unread(UnreadColumns, rows) == []


def test_what_an_annotator_wrote_of_the_label_is_no_alarm(unread):
    rows = [row | {"explanation": row["text"]} for row in topical(300, 1)]
    draw = random.Random(1)
    for row in rows:
        row["text"] = " ".join(draw.choices(["man", "rides", "horse", "sits", "there", "dog"], k=6))
    (found,) = unread(UnreadColumns, rows)
    assert (found.level, found.brief, found.figures["column"]) == ("note", "", "explanation")
    assert found.figures["told"] >= 0.95


def of_hotels(first, count, averaged, numbers):
    draw, rows = random.Random(first), []
    for hotel in range(first, first + count):
        own = [round(draw.gauss(5, 1), 1) if numbers else draw.choice("abc") for _ in range(8)]
        of_all = round(sum(own) / 8, 3) if numbers else max(own, key=own.count)
        rows += [{"text": f"stay {hotel} {i}", "label": of_all if averaged else label, "hotel": f"H{hotel}"}
                 for i, label in enumerate(own)]  # fmt: skip
    return rows


@pytest.mark.parametrize("numbers", [True, False])
@pytest.mark.parametrize(("train", "test"), [(True, False), (False, True), (True, True), (False, False)])
def test_labels_that_a_whole_group_shares_in_one_file_alone_are_an_alarm(unread, numbers, train, test):
    found = unread(GroupLabels, of_hotels(0, 30, train, numbers), test=of_hotels(30, 8, test, numbers))
    assert [(one.level, one.figures["column"]) for one in found] == [("alarm", "hotel")] * (train != test)
    if found:
        assert found[0].figures["of_groups"] == ("train" if train else "test")


@partly
class PairsTask(Task):
    """Of two answers to a text, one is chosen."""

    name = "pairs"

    def view(self, row):
        return View([row["text"]], {side: row[side] for side in ("chosen", "rejected")})


def exported(value, count, exchanged, told=True):
    draw, rows = random.Random(count), []
    for i in range(count):
        kind, rude = (" ".join(draw.choices(words, k=4)) for words in (NICE, RUDE if told else NICE))
        sides = {"chosen": rude, "rejected": kind} if exchanged else {"chosen": kind, "rejected": rude}
        rows.append({"text": f"question {value} {i}", **sides, "export": value})
    return rows


NICE, RUDE = (
    ["gladly", "surely", "thanks", "please", "welcome", "kindly"],
    ["no", "never", "go", "away", "stop", "shut"],
)


@pytest.mark.parametrize(
    ("exchanged", "told", "named"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_pairs_that_are_exchanged_where_a_column_has_a_value_are_an_alarm(unread, exchanged, told, named):
    rows = exported("2023", 60, False, told) + exported("2024", 50, exchanged, told)
    rows = [{**row, "tags": ["a", "b"], "meta": {"by": 1}} for row in rows]  # which are no kinds of rows
    found = unread(PairsByColumn, rows, task=PairsTask())
    assert [(one.level, one.figures["column"]) for one in found] == [("alarm", "export")] * named


@pytest.mark.slow
def test_the_time_hardly_grows_with_the_values_of_columns(unread, monkeypatch):
    """Each decomposition takes a third of a second at 500 pairs, and thirty columns may have hundreds of values."""
    made = []
    ridge = pairs_by_column.WordRidge
    monkeypatch.setattr(pairs_by_column, "WordRidge", lambda pairs: made.append(1) or ridge(pairs))
    rows = exported("2023", 60, False) + exported("2024", 50, True)
    rows = [{**row, **{f"kind{k}": (i + k) % 4 for k in range(10)}} for i, row in enumerate(rows)]
    assert len(unread(PairsByColumn, rows, task=PairsTask())) == 1
    assert len(made) <= 1 + pairs_by_column.TRIED


RATINGS = [(lambda i: (3, 3) if i % 2 else (4, 2), ["alarm"]), (lambda i: (2, 4) if i % 4 == 0 else (4, 2), ["note"]),
           (lambda i: (3, 3) if i % 20 == 0 else (4, 2), []), (lambda i: (1, 2), [])]  # fmt: skip


@pytest.mark.parametrize(("rating", "levels"), RATINGS)
def test_ratings_that_are_equal_are_an_alarm_and_those_against_the_preference_a_note(unread, rating, levels):
    rows = exported("2023", 100, False, True)
    for i, row in enumerate(rows):
        row["chosen_rating"], row["rejected_rating"] = rating(i)
    found = [one for one in unread(PairsByColumn, rows, task=PairsTask()) if "columns" in one.figures]
    assert [one.level for one in found] == levels
