"""What training texts and held-out ones do not have alike: language, length, labels at all; and what tells all labels.

Each fault is found, and a sound counterpart stays silent.
"""

import json
import random

import numpy as np
import pytest
from partly import partly

from ftengine.api import Finding, Task, View
from ftengine_builtins.audits.missing_codes import find_code

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "ru", "se", "to") for b in ("ban", "dor", "fel", "gus", "hin", "jut")]
ENGLISH = "The delivery of the {}th parcel was late again and nobody at the counter could tell us where it was."
ITALIAN = "La consegna del {}º pacco era di nuovo in ritardo e nessuno allo sportello sapeva dirci dove fosse."
RUSSIAN = "Доставка {}-й посылки снова задержалась, и никто на почте не мог нам сказать, где она находится."


@partly
class SeveralTask(Task):
    """A text is to be given any of its labels."""

    name = "several"

    def view(self, row):
        return View([row["text"]], row["label"], classes=True)


@pytest.fixture
def found(write, label_task, audit):
    """Audit rows of a training and a test file; return an audit's findings."""

    def found(source, train, test, task=label_task, **options) -> list[Finding]:
        names = {name: write(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
                 for name, rows in (("train", train), ("test", test))}  # fmt: skip
        options |= {"near_duplicates": None, "leaks": "warn", "only": source}
        return list(audit(task, names["train"], test=names["test"], **options).findings)

    return found


def spoken(sentence, count, start=0):
    return [{"text": sentence.format(start + i), "label": "ab"[i % 2]} for i in range(count)]


@pytest.mark.parametrize(("other", "name"), [(ITALIAN, "it"), (RUSSIAN, "ru")])
def test_a_test_split_in_another_language_is_one_finding(found, other, name):
    (one,) = found("languages", spoken(ENGLISH, 60), [*spoken(other, 90), *spoken(ENGLISH, 3, 60)])
    assert (one.kind, one.figures["split"], one.figures["language"]) == ("data", "test", name)
    assert one.figures["held_out"] == {name: 90, "en": 3}
    assert one.figures["train"] == {"en": 60}


@pytest.mark.parametrize("italian", [30, 0])
def test_languages_that_training_has_as_well_are_no_news(found, italian):
    train = [*spoken(ITALIAN, italian), *spoken(ENGLISH, 60)]
    assert found("languages", train, [*spoken(ITALIAN, italian, 90), *spoken(ENGLISH, 40, 90)]) == []


def lengthy(count, seed, least=80, most=160):
    draw, rows = random.Random(seed), []
    for i in range(count):
        text = f"row{seed}x{i} " + " ".join(draw.choices(WORDS, k=40))
        rows.append({"text": text[: draw.randint(least, most)].strip(), "label": "abc"[i % 3]})
    return rows


def shortened(rows, size, label=None):
    return [{**row, "text": row["text"][:size] if label in (None, row["label"]) else row["text"]} for row in rows]


@pytest.mark.parametrize(("split", "label"), [("train", "b"), ("train", None), ("test", "b"), ("test", None)])
def test_texts_that_are_cut_at_one_length_in_one_split_are_an_alarm(found, split, label):
    train, test = lengthy(150, 1), lengthy(90, 2)
    files = (shortened(train, 40, label), test) if split == "train" else (train, shortened(test, 40, label))
    (one,) = found("shortened-texts", *files)
    windows = split == "test" and label is None  # all held-out texts have one length
    assert (one.kind, one.level, one.figures["split"]) == ("data", "note" if windows else "alarm", split)
    (cut,) = one.figures["shortened"]
    assert (cut["label"], cut["end"]) == (label, 40)
    assert windows or {"quality", "splits"} <= set(one.explains)


def test_texts_of_one_label_that_are_far_shorter_in_training_are_an_alarm(found):
    train = [row for row in lengthy(150, 1) if row["label"] != "b"]
    train += [{**row, "label": "b"} for row in lengthy(50, 3, 20, 50)]
    (one,) = found("shortened-texts", train, lengthy(90, 2))
    assert [(cut["label"], cut["end"]) for cut in one.figures["shortened"]] == [("b", None)]


@partly
class AnsweringTask(Task):
    """A prompt is to be answered freely."""

    name = "answering"

    def view(self, row):
        return View([row["prompt"]], row["text"], texts=[row["prompt"], row["text"]])


@pytest.mark.parametrize(("split", "end"), [("train", ""), ("test", ""), (None, "."), (None, "7")])
def test_answers_that_are_cut_in_a_word_in_one_split_are_an_alarm(found, split, end):
    """Whoever keeps to a limit, or gives a number, does not stop in a word."""

    def asked(rows, size=None):
        cut = size and size - len(end)
        texts = [row["text"][:cut].replace(" ", "_" if cut else " ") + (end if cut else ".") for row in rows]
        return [{"prompt": f"{row['label']} {i}{size}", "text": text}
                for i, (row, text) in enumerate(zip(rows, texts, strict=True))]  # fmt: skip

    train, test = lengthy(150, 1), lengthy(90, 2)
    files = (asked(train), asked(test, 40)) if split == "test" else (asked(train, 40), asked(test))
    alarms = found("shortened-texts", *files, task=AnsweringTask())
    assert [(one.level, one.figures["split"]) for one in alarms] == ([("alarm", split)] if split else [])
    if split:
        assert [(cut["end"], cut["share"]) for cut in alarms[0].figures["shortened"]] == [(40, 1)]
    assert found("shortened-texts", asked(train), asked(test), task=AnsweringTask()) == []
    assert found("shortened-texts", asked(train, 40), asked(test, 40), task=AnsweringTask()) == []


def noted(count, seed, share=1.0):
    """Return notes that mostly end with what was done once the label was known."""
    ends = {"yes": ["payment sent to finance", "finance was instructed"], "no": ["refusal posted", "sent a refusal"]}
    draw, rows = random.Random(seed), []
    for i in range(count):
        label = draw.choice(["yes", "no"])
        end = draw.choice(ends[label]) if draw.random() < share else draw.choice(WORDS)
        rows.append({"text": f"row{seed}x{i} {' '.join(draw.choices(WORDS, k=12))}. {end}.", "label": label})
    return rows


def test_a_phrase_that_tells_each_label_is_named(found):
    (one,) = found("telling-phrases", noted(200, 1), noted(80, 2))
    assert (one.level, one.figures["phrases"]) == ("note", {"yes": "finance", "no": "refusal"})


def test_phrases_that_tell_most_rows_or_in_training_alone_are_not(found):
    assert found("telling-phrases", noted(200, 1, 0.8), noted(80, 2, 0.8)) == []
    assert found("telling-phrases", noted(200, 1), noted(80, 2, 0.0)) == []
    assert found("telling-phrases", lengthy(150, 1), lengthy(90, 2)) == []


@pytest.mark.parametrize(
    ("bare", "held_bare", "topic", "level", "split"),
    [(0.5, 0.0, "", "alarm", "train"), (0.5, 0.0, "elsewhere ", "note", "train"), (0.1, 0.5, "", "note", "test"),
     (0.3, 0.3, "", None, None)],
    ids=["never coded", "of another topic", "in test alone", "alike"],
)  # fmt: skip
def test_rows_that_were_never_given_labels_are_found_where_splits_differ(found, bare, held_bare, topic, level, split):
    def coded(count, seed, share):
        rows = lengthy(count, seed)
        return [{"text": topic + row["text"], "label": []} if i < share * count else
                {**row, "label": [row["label"], "d"]} for i, row in enumerate(rows)]  # fmt: skip

    findings = found("unlabelled-rows", coded(200, 1, bare), coded(100, 2, held_bare), SeveralTask())
    assert [(one.level, one.figures["split"]) for one in findings] == ([(level, split)] if level else [])
    if split:
        assert findings[0].figures["share"] == max(bare, held_bare)
        assert findings[0].places[0] == f"{split}.jsonl:1"


@pytest.mark.parametrize(
    ("counts", "held", "split"),
    [
        ((1, 1), (1, 3), "train"),
        ((1, 3), (1, 1), "test"),
        ((1, 1, 2), (1, 3), None),
        ((1,) * 10, (1,) * 9 + (2,), None),
    ],
)
def test_rows_that_all_have_one_label_in_one_split_alone_are_an_alarm(found, counts, held, split):
    def coded(count, seed, each):
        rows = enumerate(lengthy(count, seed))
        return [{**row, "label": [row["label"], "d", "e"][: each[i % len(each)]]} for i, row in rows]

    alarms = found("surface-features", coded(200, 1, counts), coded(100, 2, held), SeveralTask())
    assert [(one.level, one.figures["what"]) for one in alarms] == ([("alarm", "labels")] if split else [])
    if split:
        (gap,) = alarms[0].figures["features"]
        assert gap["training" if split == "train" else "held_out"] == 1


USUAL = np.random.default_rng(0).gamma(3, 3, 300).round(1)


@pytest.mark.parametrize(
    ("values", "code", "written"),
    [
        ([*USUAL, *[999.0] * 20], 999.0, True),
        ([*USUAL, *[-1.0] * 20], -1.0, False),
        ([*USUAL, *[-9.0] * 20], -9.0, True),
        ([*USUAL, *[1000.0] * 20], 1000.0, False),
        ([*USUAL.round(), *[9999.0] * 20], 9999.0, True),
        ([*(100 + USUAL), *[0.0] * 20], 0.0, False),
        ([*(100 + USUAL), *[0.0] * 100], None, None),  # most claims are for nothing
        ([*(100 + USUAL), *[-999.0] * 100], -999.0, True),
        ([*USUAL, *[999.0] * 2], None, None),  # too few
        ([*USUAL, *(900 + USUAL[:20])], None, None),  # far, and not equal
        ([*(USUAL - 10), *[-1.0] * 20], None, None),  # among the others
        ([*USUAL, *[0.0] * 20], None, None),  # may be a number as others
        ([1.0, 2.0, 3.0, 4.0, 10.0] * 40, None, None),
        ([-1.0, 0.0, 1.0] * 40, None, None),
    ],
)
def test_many_equal_numbers_far_from_all_others_are_a_code(values, code, written):
    assert find_code(np.array(values)) == (None if code is None else (code, written))
