"""Truths about what the data are: cut, misspelt, copied, empty, or without the column that decides.

Read with those of verdicts_truths.py by benchmarks/verdicts.py.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from verdicts_truths import ANSWERS, FILLERS, OF_USE, ONLY_BETTER, Rows, Truth, build, by, in_all, kind

OF_DATA = (*OF_USE, "labels", "over-fitting", "data")
NEAR = {"near_duplicates": 0.8}
COMMANDS = ("turn on", "turn off", "dim", "check", "start", "stop")
DEVICES = ("light", "heater", "fan", "radio", "camera", "lock", "blind", "oven", "alarm", "screen")
ROOMS = ("kitchen", "bedroom", "hall", "garage", "bathroom", "office", "cellar", "garden", "attic", "study")


def of_data(folder: Path, seed: int, world: str, *, task: dict[str, Any] | None = None, **options: Any) -> dict:
    """Return the recipe of a world with other options of its task."""
    recipe = build(folder, seed, world, **options)
    return {**recipe, "task": {**recipe["task"], **(task or {})}}


def at_the_end(draw: random.Random, rows: Rows) -> None:
    """Sixty words stand before those that decide."""
    for row in rows:
        row["text"] = " ".join([*draw.choices(FILLERS, k=60), row["text"]])


def not_at_the_end(draw: random.Random, rows: Rows) -> None:
    """Sixty words stand behind those that decide."""
    for row in rows:
        row["text"] = " ".join([row["text"], *draw.choices(FILLERS, k=60)])


def two_spellings(draw: random.Random, rows: Rows) -> None:
    """Two labels are each written in two ways."""
    names = sorted({row["label"] for row in rows})[:2]
    for row in rows:
        if row["label"] in names and draw.random() < 0.5:
            row["label"] = f"{row['label'].capitalize()} "


def few_spelt_otherwise(draw: random.Random, rows: Rows) -> None:
    """One row in a hundred has a label in capitals."""
    for row in rows[::100]:
        row["label"] = row["label"].upper()


def one_word_changed(draw: random.Random, splits: dict[str, Rows]) -> None:
    """Test rows are training rows with one word changed, which is not the one that decides."""
    for row, other in zip(splits["test"], splits["train"], strict=False):
        words = other["text"].split()
        at = draw.choice([i for i, word in enumerate(words) if word not in ANSWERS])
        words[at] = draw.choice([word for word in FILLERS if word != words[at]])
        row |= {"text": " ".join(words), "label": other["label"]}


def templated(draw: random.Random, splits: dict[str, Rows]) -> None:
    """All texts are of one form, and honestly drawn without repetition: what is to be done decides."""
    every = [(verb, device, room) for verb in COMMANDS for device in DEVICES for room in ROOMS]
    rows = iter(draw.sample(every, sum(map(len, splits.values()))))
    for part in splits.values():
        for row, (verb, device, room) in zip(part, rows, strict=False):
            row |= {"text": f"please {verb} the {device} in the {room}", "label": verb}


def one_answer(draw: random.Random, rows: Rows) -> None:
    for row in rows:
        row["completion"] = " I do not know."


def typed_marks(draw: random.Random, rows: Rows) -> None:
    """Prompts were written in a chat template before, and will be once more."""
    for row in rows:
        row["prompt"] = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"


def by_a_column(draw: random.Random, rows: Rows) -> None:
    """The label follows from a column that is not read, in 95 of 100 rows; texts tell nothing."""
    names = sorted(ANSWERS)
    for number, row in enumerate(rows):
        channel = draw.randrange(12)
        row["label"] = names[channel % 4] if draw.random() < 0.95 else draw.choice(names[:4])
        row |= {"channel": f"channel {channel}", "id": number}


def with_columns(draw: random.Random, rows: Rows) -> None:
    """Columns that add nothing: an id, the label's number, one that goes with the label in four of five rows."""
    names = sorted(ANSWERS)
    for number, row in enumerate(rows):
        code = names.index(row["label"])
        row |= {"id": f"r{number}", "code": code, "topic": code if draw.random() < 0.8 else draw.randrange(8)}


def same_file(draw: random.Random, splits: dict[str, Rows]) -> None:
    splits["validation"] = [dict(row) for row in splits["test"]]


def not_available(draw: random.Random, rows: Rows) -> None:
    for row in rows:
        if draw.random() < 0.5:
            row["text"] = draw.choice(["N/A", "N/A", "n/a"])


def seldom_available(draw: random.Random, splits: dict[str, Rows]) -> None:
    """One training row in a hundred has no text."""
    for row in splits["train"][::100]:
        row["text"] = "N/A"


CUT = by("cut-examples", level="alarm")
PLACEHOLDERS = by("missing-texts", "placeholders", level="alarm")
SPELLINGS = by("label-spellings", "spellings", level="alarm")
SHORT_COPIES = by("short-copies", "held_out", level="alarm")
UNREAD = by("unread-columns", "column", level="alarm")
SAME_ROWS = by("leaked-rows", "between", level="alarm")
ONE_ANSWER = by("one-answer", "share", level="alarm")
MARKS = by("template-marks", "marks", level="alarm")


def of(name: str, named, worlds: str, *, fits=OF_DATA, usable: bool = False, refusable: bool = False, seeds: int = 3,
       **options: Any) -> list[Truth]:  # fmt: skip
    def make(world: str):
        return lambda folder, seed: of_data(folder, seed, world, **options)

    return [
        Truth(f"{name}: {world}", make(world), named, fits, usable, 2 if world == "news" else seeds, refusable)
        for world in worlds.split()
    ]


SHORT = {"task": {"max_length": 32}}
CHAT = {"task": {"chat_template": "auto"}}

TRUTHS: list[Truth] = [
    *of("what decides is cut off", CUT, "words news grades", spoil=in_all(at_the_end), **SHORT),
    *of("sound, all texts are cut behind what decides", ONLY_BETTER, "words", spoil=in_all(not_at_the_end),
        usable=True, **SHORT),
    *of("sound, what decides is at the end that is kept", ONLY_BETTER, "words", spoil=in_all(at_the_end), usable=True,
        task={"max_length": 32, "truncate": "left"}),
    *of("labels in two spellings", SPELLINGS, "words news", spoil=in_all(two_spellings), usable=True),
    *of("sound, few labels in another spelling", kind("quality", "good"), "words", spoil=in_all(few_spelt_otherwise),
        usable=True),
    *of("test is training with one word changed", SHORT_COPIES, "words", spoil=one_word_changed, data=NEAR,
        sizes=(400, 80, 200), usable=True),
    *of("sound, short texts of one form", ONLY_BETTER, "words", spoil=templated, data=NEAR, sizes=(300, 60, 150),
        usable=True),
    *of("sound, short texts compared", ONLY_BETTER, "words news", data=NEAR, usable=True),
    *of("all answers are one text", ONE_ANSWER, "chat", spoil=in_all(one_answer), usable=True),
    *of("template marks in prompts", MARKS, "chat", spoil=in_all(typed_marks), usable=True, **CHAT),
    *of("sound, in the chat template", ONLY_BETTER, "chat", usable=True, **CHAT),
    *of("a column that decides is not read", UNREAD, "words", spoil=in_all(by_a_column)),
    *of("sound, columns that add nothing", ONLY_BETTER, "words", spoil=in_all(with_columns), usable=True),
    *of("validation is the test file", SAME_ROWS, "words chat", spoil=same_file, usable=True),
    *of("half of the texts are a placeholder", PLACEHOLDERS, "words news", spoil=in_all(not_available),
        data={"leaks": "warn"}, usable=True),
    *of("sound, some placeholders", kind("quality", "good"), "words", spoil=seldom_available, usable=True),
]  # fmt: skip
