"""Encoded splits: changed the same way on every call, never unusable, and what is drawn from them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from expected import raises
from partly import partly

from ftengine.api import Augmenter, Features, InputAugmenter, SilentListener, Task, View
from ftengine.data.augmentation_preview import always_the_same, without_effect
from ftengine.data.encoding import encode_split
from ftengine.data.read import read_rows
from ftengine.errors import DataError


@partly
class Words(Task):
    """Counts words; refuses texts without any, and learns nothing of texts that say so."""

    name = "words"
    modality = "text"

    def view(self, row):
        return View([row["text"]])

    def with_inputs(self, row, inputs):
        return {**row, "text": inputs[0]}

    def encode(self, example, processor, *, max_length=None):
        words = example["text"].split()
        if not words:
            raise DataError("no words")
        return Features({"words": words}, len(words), weight=0 if words == ["untrained"] else 1, truncated=False)

    def collate(self, features, processor):
        return {"words": [one.inputs["words"] for one in features]}


class Stamp(InputAugmenter):
    """Writes a random number behind a text."""

    name = "stamp"

    def change(self, text, rng):
        return f"{text} {rng.randrange(10**9)}"


class Greedy(InputAugmenter):
    """Draws more or fewer random numbers and changes nothing."""

    name = "greedy"

    def change(self, text, rng):
        for _ in range(len(text)):
            rng.random()
        return text


class Fixed(Augmenter):
    """Puts one text in the place of all."""

    name = "fixed"
    text = ""

    def augment(self, row, task, rng):
        yield task.with_inputs(row, [self.text])


class Twice(Augmenter):
    name = "twice"

    def augment(self, row, task, rng):
        yield from (row, {**row, "text": "untrained"}, {**row, "text": "again"})


class Shuffle(Augmenter):
    name = "shuffle"

    def mix(self, batch, task, rng):
        return {**batch, "mixed": rng.randrange(10**9)}

    def check_mix(self, task):
        pass


@pytest.fixture
def split(write):
    texts = [f"row {i} " + "x " * i for i in range(20)] + ["row 3 " + "x " * 3]
    rows = read_rows(write("rows.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts)))
    return encode_split("train", rows, Words(), None, None, on_error="fail", listener=SilentListener(), seed=5)


def under(split, *augmenters):
    return replace(split, augmenters=augmenters)


ALL = np.arange(21)


def test_a_row_is_changed_the_same_way_in_any_batch_and_anew_in_every_epoch(split):
    changed = under(split, Stamp())
    whole = changed.batch(ALL, 3)["words"]
    assert [changed.batch(ALL[i : i + 1], 3)["words"][0] for i in reversed(ALL)] == whole[::-1]
    assert all(a != b for a, b in zip(whole, changed.batch(ALL, 4)["words"], strict=True))
    assert len({words[-1] for words in whole}) == 21
    other_seed = replace(changed, seed=6)
    assert all(a != b for a, b in zip(whole, other_seed.batch(ALL, 3)["words"], strict=True))


@pytest.mark.parametrize("text", ["", " ", "untrained"])
def test_a_change_that_leaves_nothing_to_learn_is_not_made(split, text):
    fixed = Fixed()
    fixed.text = text
    assert under(split, fixed).batch(ALL, 0) == split.batch(ALL)


def test_batches_are_mixed_by_epoch_and_rows(split):
    changed = under(split, Shuffle())
    numbers = [changed.batch(members, epoch)["mixed"] for members in (ALL[:4], ALL[1:5]) for epoch in (0, 1, 0)]
    assert numbers[0] == numbers[2]
    assert len(set(numbers)) == 4


def test_under_keeps_one_example_for_one_whatever_the_epoch(split):
    changed = split.under([Stamp(), Twice(), Shuffle()])
    batch = changed.batch(ALL)
    assert len(batch["words"]) == 21
    assert "mixed" not in batch
    assert batch == changed.batch(ALL, 9) != split.batch(ALL)
    assert batch != split.under([Stamp()], epoch=1).batch(ALL)
    assert split.augmenters == ()


def test_augmenters_that_change_nothing_are_named(split):
    assert without_effect(under(split, Greedy(), Stamp(), Shuffle())) == ["greedy"]


def test_augmenters_that_change_all_rows_alike_in_every_epoch_are_named(split):
    @partly
    class Doubled(Augmenter):
        """Says everything twice."""

        name = "doubled"

        def augment(self, row, task, rng):
            yield {**row, "text": f"{row['text']} {row['text']}"}

    assert always_the_same(under(split, Greedy(), Doubled(), Stamp(), Shuffle())) == ["doubled"]


@pytest.mark.parametrize("wrong", ["good / oops / good", "oops / good", "good / oops"])
def test_a_row_of_which_one_example_cannot_be_used_is_left_out_whole(write, wrong):
    class Parts(Words):
        def parts(self, row, processor):
            return len(row["text"].split(" / "))

        def encode(self, example, processor, *, max_length=None, part=None):
            text = example["text"].split(" / ")[part or 0]
            return super().encode({"text": "" if text == "oops" else text}, processor)

    texts = ["one", "two / three", wrong, "four / five"]
    rows = read_rows(write("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts)))
    split = encode_split("train", rows, Parts(), None, None, on_error="skip", listener=SilentListener())
    assert [split.features(int(i)).inputs["words"] for i in split.index] == [
        ["one"],
        ["two"],
        ["three"],
        ["four"],
        ["five"],
    ]
    assert list(split.skipped.values()) == ["a.jsonl:3: no words"]
    assert (split.left_out, split.summary()["rows"]) == ([2], 3)
    with raises(DataError, "a.jsonl:3", "no words"):
        encode_split("train", rows, Parts(), None, None, on_error="fail", listener=SilentListener())
