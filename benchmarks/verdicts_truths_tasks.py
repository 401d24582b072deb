"""Truths about tasks that learn by comparing, numbers and conversations.

Read with those of verdicts_truths.py by benchmarks/verdicts.py: preferences and rewards (which answer is the chosen
one), embeddings (which texts belong together), numbers whose unit or decimals are lost, and conversations whose answers
belong to other prompts. Sound runs of each task stand beside them.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from verdicts_truths import (
    ANSWERS,
    FILLERS,
    LOWER_RATE,
    OF_USE,
    ONLY_BETTER,
    UNTRAINED,
    Rows,
    Truth,
    asked,
    by,
    either,
    in_all,
    in_training,
    kind,
    runs_of,
    tiny,
)

Spoil = Callable[[random.Random, dict[str, Rows]], None]
RATES = {"preference": 1e-3, "reward": 1e-3, "embedding": 3e-3}
MODELS = {"preference": "tiny_llama", "reward": "tiny_llama", "embedding": "tiny_bert"}
TRANSLATED = dict(zip(FILLERS, FILLERS[7:] + FILLERS[:7], strict=True))
"""What each word of an anchor is in its positive."""
OF_TASK = (*OF_USE, "labels", "over-fitting", "data", "worse")
SWAPPED = either(by("swapped-pairs", "swapped"), by("exchanged-roles", "exchanged"))
NO_PREFERENCE = by("swapped-pairs", "uninformative")


def preferred(draw: random.Random, count: int) -> Rows:
    """Draw distinct prompts of six to nine words, one of which decides which of two answers is chosen."""
    rows = asked(draw, count)
    for row in rows:
        key = row.pop("label")
        other = draw.choice([name for name in ANSWERS if name != key])
        row |= {"prompt": row.pop("text"), "chosen": f" {ANSWERS[key]}", "rejected": f" {ANSWERS[other]}"}
    return rows


def translated(draw: random.Random, count: int) -> Rows:
    """Draw distinct anchors of five words, whose positives are the same words in another language."""
    anchors: dict[str, dict[str, Any]] = {}
    while len(anchors) < count:
        words = draw.sample(FILLERS, k=5)
        positive = " ".join(TRANSLATED[word] for word in words)
        anchors.setdefault(" ".join(words), {"anchor": " ".join(words), "positive": positive})
    return list(anchors.values())


def compared(
    folder: Path,
    seed: int,
    task: str,
    *,
    spoil: Spoil | None = None,
    train: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    sizes: tuple[int, int, int] = (400, 60, 150),
    strategy: str = "full",
) -> dict[str, Any]:
    """Write the data of a task that compares, spoilt, and return its recipe; `options` are those of the task."""
    draw = random.Random(f"{task} {seed}")
    rows = (translated if task == "embedding" else preferred)(draw, sum(sizes))
    splits, start = dict[str, Rows](), 0
    for name, count in zip(("train", "validation", "test"), sizes, strict=True):
        splits[name] = rows[start : start + count]
        start += count
    if spoil is not None:
        spoil(draw, splits)
    files = {name: str(folder / f"{name}.jsonl") for name in splits}
    for name, file in files.items():
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in splits[name]), encoding="utf-8")
    return {
        "model": {"source": tiny(MODELS[task])},
        "task": {"name": task, **(options or {})},
        "data": {"near_duplicates": None, **files, **(data or {})},
        "strategy": strategy,
        "train": {
            "batch_size": 16,
            "learning_rate": RATES[task],
            "epochs": 5,
            "checkpoint_every": 10**6,
            **(train or {}),
        },
        "evaluation": {"batch_size": 64, "resamples": 200, "answers": None},
        "seed": seed,
    }


def swap(rows: Rows, share: float = 1.0) -> None:
    """Exchange chosen and rejected answers in the first rows."""
    for row in rows[: round(share * len(rows))]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]


def swapped_in(*names: str, share: float = 1.0) -> Spoil:
    def spoil(draw: random.Random, splits: dict[str, Rows]) -> None:
        for name in names:
            swap(splits[name], share)

    return spoil


def longer_chosen(draw: random.Random, rows: Rows) -> None:
    """Whatever is asked, the longer answer was chosen in nine of ten rows."""
    for row in rows:
        texts = [row["chosen"], f"{row['rejected']} {' '.join(draw.choices(FILLERS, k=6))}"]
        draw.shuffle(texts) if draw.random() < 0.1 else texts.reverse()
        row["chosen"], row["rejected"] = texts


def both_ways(draw: random.Random, splits: dict[str, Rows]) -> None:
    """Every other training row stands there a second time with its answers exchanged."""
    again = [dict(row) for row in splits["train"][::2]]
    swap(again)
    splits["train"] += again


def shifted(column: str, *names: str) -> Spoil:
    """Return a change: a column slipped by one row in some splits."""

    def spoil(draw: random.Random, splits: dict[str, Rows]) -> None:
        for name in names:
            values = [row[column] for row in splits[name]]
            for row, value in zip(splits[name], values[1:] + values[:1], strict=True):
                row[column] = value

    return spoil


def lost_decimals(draw: random.Random, rows: Rows) -> None:
    """In one row of 50 the decimal comma was lost: 3.211 became 3211."""
    for row in draw.sample(rows, len(rows) // 50):
        row["label"] *= 1000


def in_cents(draw: random.Random, splits: dict[str, Rows]) -> None:
    """The test split has another unit."""
    for row in splits["test"]:
        row["label"] *= 100


def random_pairs(draw: random.Random, rows: Rows) -> None:
    """Which of two answers was chosen is by chance."""
    for row in rows:
        if draw.random() < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]


def mix_at_the_edge(draw: random.Random, splits: dict[str, Rows]) -> None:
    """Of 20 test splits drawn at random the one whose topics differ most from training; their number is the same."""
    rows, size = [*splits["train"], *splits["test"]], len(splits["test"])
    topics = Counter(row["label"] for row in rows)

    def distance(test: Rows) -> float:
        own = Counter(row["label"] for row in test)
        return sum((own[name] - size * count / len(rows)) ** 2 / count for name, count in topics.items())

    drawn = [draw.sample(rows, len(rows)) for _ in range(20)]
    widest = max(drawn, key=lambda order: distance(order[:size]))
    splits["test"], splits["train"] = widest[:size], widest[size:]


def both_topics(draw: random.Random, rows: Rows) -> None:
    """Texts are of two styles, one of them in a tenth of the rows, whatever their label."""
    for row in rows:
        if draw.random() < 0.1:
            row["text"] = f"Good morning! {row['text'].capitalize()}, thank you"


def changed(recipe: dict[str, Any], name: str, spoil: Callable[[Rows], None]) -> dict[str, Any]:
    """Rewrite the rows of a split as the verdict advises, and return the recipe."""
    file = Path(recipe["data"][name])
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    spoil(rows)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return recipe


def swap_test_back(recipe: dict[str, Any]) -> dict[str, Any]:
    return changed(recipe, "test", swap)


def points_put_back(recipe: dict[str, Any]) -> dict[str, Any]:
    def divide(rows: Rows) -> None:
        for row in rows:
            row["label"] /= 1000 if row["label"] > 100 else 1

    return changed(recipe, "train", divide)


def shifted_back(column: str, *names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def mend(recipe: dict[str, Any]) -> dict[str, Any]:
        def back(rows: Rows) -> None:
            values = [row[column] for row in rows]
            for row, value in zip(rows, values[-1:] + values[:-1], strict=True):
                row[column] = value

        for name in names:
            recipe = changed(recipe, name, back)
        return recipe

    return mend


def first_of_both(recipe: dict[str, Any]) -> dict[str, Any]:
    """Leave out the rows that say the contrary of earlier ones."""

    def first(rows: Rows) -> None:
        compared = dict[tuple[str, ...], dict[str, Any]]()
        for row in rows:
            compared.setdefault((row["prompt"], *sorted((row["chosen"], row["rejected"]))), row)
        rows[:] = compared.values()

    return changed(recipe, "train", first)


def of_task(name: str, named: Any, task: str, seeds: int = 4, *, mend: Any = None, fits: Any = OF_TASK,
            usable: bool = False, **options: Any) -> Truth:  # fmt: skip
    """Return a truth of a task that compares; `options` are those of `compared`."""
    make = partial(compared, task=task, **options)
    return Truth(f"{name}: {task}", make, named, fits=fits, usable=usable, seeds=seeds, mend=mend)


TRUTHS: list[Truth] = [
    *(of_task("sound", kind("quality"), task, 6, usable=True) for task in ("preference", "reward", "embedding")),
    of_task("sound with LoRA", kind("quality"), "preference", usable=True, strategy="lora",
            train={"learning_rate": 1e-2}),
    *runs_of("sound, another mix of topics", ONLY_BETTER, "words news", spoil=mix_at_the_edge, usable=True, seeds=6),
    *runs_of("sound, two styles", ONLY_BETTER, "words grades", spoil=in_all(both_topics), usable=True),
    *(of_task("chosen and rejected exchanged in test", SWAPPED, task, spoil=swapped_in("test"), mend=swap_test_back)
      for task in ("preference", "reward")),
    *(of_task("preferences at random", NO_PREFERENCE, task, spoil=in_all(random_pairs))
      for task in ("preference", "reward")),
    of_task("the longer answer was chosen", by("preference-lengths", "share", level="alarm"), "preference",
            spoil=in_all(longer_chosen), usable=True),
    of_task("compared both ways round", by("contrary-preferences", "comparisons", level="alarm"), "preference",
            spoil=both_ways, mend=first_of_both, usable=True),
    *(of_task("too few steps", UNTRAINED, task, train={"max_steps": 5}, usable=True)
      for task in ("preference", "reward", "embedding")),
    of_task("rate far too high", LOWER_RATE, "embedding", train={"learning_rate": 0.3}),
    of_task("positives of the next row", LOWER_RATE, "embedding", spoil=shifted("positive", "train"),
            mend=shifted_back("positive", "train")),
    *runs_of("decimal points lost", by("number-targets", "lost_points"), "grades", spoil=in_training(lost_decimals),
             fits=OF_TASK, mend=points_put_back),
    *runs_of("answers of the next row in training", by("learning-curve", "stuck"), "chat",
             spoil=shifted("completion", "train"), fits=OF_TASK, mend=shifted_back("completion", "train")),
    *runs_of("answers of the next row in test", by("validation-and-test", "validation"), "chat",
             spoil=shifted("completion", "test"), fits=OF_TASK, mend=shifted_back("completion", "test")),
]  # fmt: skip
