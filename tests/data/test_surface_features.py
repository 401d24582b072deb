"""What texts of training and of a test file look like: capitals, stop words, lines of a speaker, tagged words."""

import json
import random

import numpy as np
import pytest
from partly import partly
from PIL import Image

from ftengine.api import Task, View
from ftengine_builtins.audits.image_changes import CHANGES, find_change
from ftengine_builtins.tasks import language_rows
from ftengine_builtins.tasks.embedding import Embedding
from ftengine_builtins.tasks.preference import Preference

PLACES = ("Rome", "Paris", "Oslo", "Lima")
SAID = ("The soup was not warm and the bread was dry.", "I did not see that it was closed on Monday!",
        "Is it true that he was in the garden?", "We were told to wait; nobody came to open the gate.")  # fmt: skip


@partly
class LabelledTask(Task):
    """A text has a label."""

    name = "labelled"

    def view(self, row):
        return View([row["text"]], row["label"], classes=True)


@partly
class AnsweredTask(Task):
    """A prompt has a completion."""

    name = "answered"

    def view(self, row):
        return language_rows.view(row, all_trained=False)


@partly
class TaggedTask(Task):
    """Each word has a tag."""

    name = "tagged"

    def view(self, row):
        return View(row["words"], row["tags"], True, [" ".join(row["words"])], row["words"])


@pytest.fixture
def found(write, audit):
    """Audit a training and a test file; return what the audit finds."""

    def found(task, train, test, source="surface-features", **options):
        names = [write(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
                 for name, rows in (("train", train), ("test", test))]  # fmt: skip
        result = audit(task, names[0], test=names[1], near_duplicates=None, leaks="warn", **options)
        return [one for one in result.findings if one.source == source]

    return found


def sentence(rng):
    return f"{rng.choice(SAID)} {rng.choice(PLACES)} {rng.randrange(10**6)} {rng.choice(SAID)}"


def labelled(count, seed, clean=str):
    rng = random.Random(seed)
    return [{"text": clean(sentence(rng)), "label": rng.choice("ab")} for _ in range(count)]


def without_stop_words(text):
    stop = {"the", "was", "not", "and", "i", "did", "that", "it", "on", "is", "he", "in", "we", "were", "to"}
    return " ".join(word for word in text.split() if word.lower() not in stop)


def names_of(findings):
    return [gap["name"].partition(" such as")[0] for one in findings for gap in one.figures["features"]]


@pytest.mark.parametrize("clean", [str.lower, lambda text: text.strip(".!?"), without_stop_words])
@pytest.mark.parametrize("split", ["train", "test"])
def test_texts_of_one_file_that_were_cleaned_are_named(found, clean, split):
    rows = [labelled(size, seed, clean if split == name else str)
            for size, seed, name in ((150, 1, "train"), (60, 2, "test"))]  # fmt: skip
    findings = found(LabelledTask(), *rows)
    assert [(one.kind, one.level, one.figures["split"]) for one in findings] == [("splits", "note", "test")]
    expected = {str.lower: "lower case", without_stop_words: "share of short frequent words"}
    assert expected.get(clean, "end of a sentence") in names_of(findings)


@pytest.mark.parametrize("seed", range(3))
def test_files_of_one_source_are_not(found, seed):
    rows = labelled(180, seed)
    assert found(LabelledTask(), rows[:120], rows[120:]) == []


def answered(count, seed, share):
    rng = random.Random(seed)
    return [{"prompt": f"What of {rng.choice(PLACES)} {i}?", "completion": sentence(rng)
             + ("\nUser: And then?\nBot: Nothing." if rng.random() < share else "")} for i in range(count)]  # fmt: skip


def test_answers_that_run_on_with_the_next_turn_are_named_by_their_speaker(found):
    (one,) = found(AnsweredTask(), answered(100, 1, 0.7), answered(40, 2, 0))
    assert (one.figures["what"], names_of([one])[0]) == ("answers", "speaker")
    assert "“User:”" in one.text
    assert one.figures["features"][0]["held_out"] == 0
    assert found(AnsweredTask(), answered(100, 1, 0.7), answered(40, 2, 0.7)) == []


@pytest.mark.parametrize("gap", ["\n", " "])
def test_answers_that_begin_with_their_prompts_are_named(found, gap):
    train, test = answered(100, 1, 0), answered(40, 2, 0)
    echoed = [{**row, "completion": f"{row['prompt']}{gap}{row['completion']}"} for row in train]
    (one,) = found(AnsweredTask(), echoed, test)
    assert (one.figures["what"], names_of([one])[0]) == ("answers", "prompt")
    assert one.figures["features"][0]["training"] == 1
    assert found(AnsweredTask(), train, test) == []


SYSTEM = "You are the clerk of a hotel and never talk about money."


def in_turns(row, system):
    said = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    return {"messages": [*([{"role": "system", "content": SYSTEM}] if system else []), *said]}


COMPOSED = {
    "ends": lambda row, i: {**row, "prompt": f"{row['prompt']} Answer briefly:"},
    "begins": lambda row, i: {**row, "completion": f"Certainly! It is like this: {row['completion']}"},
    "system message": in_turns,
    "answers in prompts": lambda row, i: {**row, "prompt": f"{i} tell: {row['completion']} {row['prompt']}"},
}


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("split", [0, 1])
def test_what_all_rows_of_one_file_are_made_of_is_an_alarm(found, name, split):
    """A template, an opening, a system message, or a context that the other file lacks, whatever the topics are."""
    files = [answered(100, 1, 0), answered(40, 2, 0)]
    whole = [[COMPOSED[name](row, name != "system message" or i) for i, row in enumerate(rows, 1)] for rows in files]
    one_sided = [whole[0], files[1]] if split == 0 else [files[0], whole[1]]
    if name == "system message":
        one_sided = [[in_turns(row, side == split) for row in rows] for side, rows in enumerate(files)]
    (one,) = found(AnsweredTask(), *one_sided)
    assert (one.level, one.figures["composition"], names_of([one])[0]) == ("alarm", True, name)
    assert found(AnsweredTask(), *whole) == []


def passage(rng, i):
    return " ".join(rng.sample([f"{word}{rng.randrange(40)}" for word in "abcdefghijklmnop"], 12)) + f" {i}"


def searched(count, seed, *, copied):
    """Return anchors that are four words of their positive in its order, or in another one with a word of their own."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        words = (text := passage(rng, seed * 1000 + i)).split()
        anchor = words[2:6] if copied else [words[1], "which", words[0], "where"]
        rows.append({"anchor": " ".join(anchor), "positive": text})
    return rows


def test_anchors_that_are_copied_from_their_positives_in_one_file_are_an_alarm(found):
    (one,) = found(Embedding(), searched(100, 1, copied=True), searched(50, 2, copied=False))
    assert (one.level, one.figures["what"], names_of([one])[0]) == ("alarm", "anchors", "anchors in positives")
    assert found(Embedding(), searched(100, 1, copied=True), searched(50, 2, copied=True)) == []


def compared(count, seed, longer):
    """Return pairs of which the chosen answer is the longer one in a share."""
    rows = []
    for row in answered(count, seed, 0):
        both = sorted([row["completion"], f"{row['completion']} It is so."], key=len)
        chosen, rejected = both[::-1] if random.Random(f"{seed} {row['prompt']}").random() < longer else both
        rows.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    return rows


def test_chosen_answers_that_are_the_longer_ones_in_one_file_are_named(found):
    (one,) = found(Preference(), compared(150, 1, 0.95), compared(60, 2, 0.1))
    assert (one.level, names_of([one])) == ("note", ["longer"])
    assert found(Preference(), compared(150, 1, 0.95), compared(60, 2, 0.9)) == []


def test_conversations_with_more_turns_in_one_file_are_named(found):
    def talks(rows, turns):
        return [{"messages": turns * in_turns(row, False)["messages"]} for row in rows]

    rows = answered(100, 1, 0), answered(40, 2, 0)
    (one,) = found(AnsweredTask(), talks(rows[0], 3), talks(rows[1], 1))
    assert names_of([one]) == ["number of turns"]
    assert found(AnsweredTask(), talks(rows[0], 3), talks(rows[1], 3)) == []


def test_answers_three_times_as_long_are_named_whatever_their_words(found):
    long = [{**row, "completion": " ".join([row["completion"], *(f"word{i}" for i in range(60))])}
            for row in answered(40, 2, 0)]  # fmt: skip
    (one,) = found(AnsweredTask(), answered(100, 1, 0), long)
    assert "number of words" in names_of([one]) or one.figures["composition"]


def test_letters_that_are_spaced_out_are_named_by_the_length_of_words(found):
    rng = random.Random(0)
    rows = [
        {"text": f"{rng.choice(PLACES)} is wonderful, {sentence(rng)} {i}", "label": "ab"[i % 2]} for i in range(160)
    ]
    spaced = [row | {"text": "  ".join(" ".join(word) for word in row["text"].split())} for row in rows[120:]]
    (one,) = found(LabelledTask(), rows[:120], spaced)
    assert any(name in ("length of words", "number of words") for name in names_of([one]))
    assert found(LabelledTask(), rows[:120], rows[120:]) == []


def tagged(count, seed, first):
    """Return rows of two to five places, of which all are tagged, or the first alone."""
    rng, rows = random.Random(seed), []
    for _ in range(count):
        words = [
            word for _ in range(rng.randint(2, 5)) for word in (rng.choice(PLACES), "and", str(rng.randrange(999)))
        ]
        tags = ["B-LOC" if word in PLACES and not (first and i) else "O" for i, word in enumerate(words)]
        rows.append({"words": words, "tags": tags})
    return rows


def test_words_that_are_tagged_in_the_first_place_only_are_an_alarm(found):
    (one,) = found(TaggedTask(), tagged(120, 1, first=True), tagged(50, 2, first=False))
    assert (one.level, one.figures["what"], one.figures["features"][0]["training"]) == ("alarm", "tagged words", 1)
    assert found(TaggedTask(), tagged(120, 1, first=False), tagged(50, 2, first=False)) == []


@partly
class DrawnTask(Task):
    """An image is drawn from a number, with a bright mark at its upper edge where it has a label there."""

    name = "drawn"

    def view(self, row):
        pixels = np.random.default_rng(row["seed"]).integers(0, 120, (32, 32), dtype=np.uint8)
        if row["mark"]:
            pixels[:3, 3 * row["label"] : 3 * row["label"] + 3] = 255
        return View([Image.fromarray(pixels)], str(row["label"]), True, [], row)


@pytest.mark.parametrize(("train", "test"), [(True, False), (False, True), (True, True), (False, False)])
def test_images_that_have_a_mark_in_one_file_alone_are_named_by_its_place(found, train, test):
    rows = [[{"seed": seed + i, "label": i % 10, "mark": mark} for i in range(count)]
            for seed, count, mark in ((0, 90, train), (1000, 50, test))]  # fmt: skip
    findings = found(DrawnTask(), *rows, source="image-features")
    assert [one.figures["split"] for one in findings] == ["test"] * (train != test)
    assert all("upper edge" in one.text for one in findings)


@partly
class OneImageTask(DrawnTask):
    """An image is drawn from a number alone."""

    name = "one-image"

    def view(self, row):
        pixels = np.random.default_rng(row["seed"]).integers(0, 120, (8, 8), dtype=np.uint8)
        return View([Image.fromarray(pixels)], str(row["label"]), True, [], row["seed"])


@partly
class NoisedTask(DrawnTask):
    """A square, which `noise` blurs, turns or makes dark."""

    name = "noised"

    def view(self, row):
        pixels = np.random.default_rng(row["seed"]).normal(128, 6, (32, 32))
        pixels[8:24, 8 : 14 + row["label"]] += 80
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        if row["noise"] == "dark":
            image = image.point(lambda value: value // 4)
        if row["noise"] == "blurred":
            image = image.resize((6, 6)).resize((32, 32))
        return View([image], str(row["label"]), True, [], row)


@pytest.mark.parametrize(("noise", "named"), [("dark", "whole image"), ("blurred", "sharpness"), ("", "")])
def test_images_that_are_darker_or_blurred_in_one_file_are_named_by_that(found, noise, named):
    rows = [[{"seed": seed + i, "label": i % 10, "noise": of} for i in range(count)]
            for seed, count, of in ((0, 90, ""), (1000, 50, noise))]  # fmt: skip
    findings = found(NoisedTask(), *rows, source="image-features")
    assert len(findings) == bool(noise)
    assert all(named in one.figures["features"][0]["name"] for one in findings)


@pytest.mark.parametrize(("share", "named"), [(0.6, True), (0.05, False)])
def test_one_image_under_several_labels_is_no_image(found, share, named):
    train = [{"seed": 1 if i < 100 * share else i, "label": i % 10, "mark": False} for i in range(100)]
    test = [{"seed": 1000 + i, "label": i % 10, "mark": False} for i in range(30)]
    findings = found(OneImageTask(), train, test, source="missing-texts")
    assert [(one.level, one.figures["placeholders"]) for one in findings] == [("alarm", {"train": 60})] * named


def scenes(count, seed):
    """Return (count, 8, 8, 3) images of a bright sky over a dark ground, to the left of something red."""
    images = np.random.default_rng(seed).normal(0.4, 0.15, (count, 8, 8, 3))
    images[:, :4] += (0.1, 0.2, 0.4)
    images[:, 5:, 5:, 0] += 0.4
    return np.clip(images, 0, 1)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("split", [0, 1])
def test_what_was_done_to_all_images_of_a_file_is_named(change, split):
    sides = [scenes(60, 1), scenes(40, 2)]
    inverse = {"colours are in the order green, blue, red": "colours are in the order blue, red, green",
               "images are turned by 90 degrees": "images are turned by 270 degrees"}  # fmt: skip
    sides[split] = CHANGES[change](sides[split])
    both = {change, inverse.get(change), *(one for one, other in inverse.items() if other == change)}
    assert find_change(*sides) in both


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("darker", [1, 0.6])
def test_images_of_one_source_or_of_another_light_have_no_such_change(seed, darker):
    assert find_change(scenes(60, seed), scenes(40, seed + 10) * darker) is None
