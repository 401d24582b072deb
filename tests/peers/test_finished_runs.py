"""A finished run's folders, as they lie there, in the programs that people open them with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from PIL import Image
from tiny import SIDE, tiny_llama, tiny_vit
from transformers import AutoConfig, AutoTokenizer, pipeline

from ftengine import Recipe, fine_tune, load_run

TEXTS = ["What is the capital of France?", "The film was wonderful.", "Shares rose after the company said so."]
LABELS = ("question", "film", "business")
pytestmark = pytest.mark.slow


def run(base: Path, task: Any, rows: list[dict], strategy: Any, folder: Path, times: int = 8):
    """Train a few steps on rows, in float32."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * times))
    content = {
        "model": {"source": str(base)},
        "task": task,
        "data": {"train": str(data), "validation": None},
        "strategy": strategy,
        "train": {"max_steps": 3, "batch_size": 6, "learning_rate": 0.01, "precision": "float32"},
        "evaluation": {"resamples": 100},
        "output": str(folder / "run"),
    }
    return fine_tune(Recipe.make(content))


def labelled() -> list[dict]:
    return [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


def scores(finished) -> list[dict[str, float]]:
    """Return ftengine's own answers."""
    answers = finished.predict([{"text": text} for text in TEXTS])
    return [dict(answer["scores"]) for answer in answers]


@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_a_pipeline_and_a_cross_encoder_give_the_runs_scores(strategy, bert_folder, tmp_path):
    finished = run(bert_folder, "text-classification", labelled(), strategy, tmp_path)
    folder = finished.trained
    if strategy == "lora":
        finished.merge(tmp_path / "merged")
        folder = tmp_path / "merged"
    ours = scores(load_run(finished.path))
    classify = pipeline("text-classification", model=str(folder), tokenizer=str(folder), top_k=None, dtype="float32")
    for text, expected in zip(TEXTS, ours, strict=True):
        theirs = {answer["label"]: answer["score"] for answer in classify([text])[0]}
        assert theirs == pytest.approx(expected, abs=1e-5)


def test_a_cross_encoder_gives_the_runs_scores(bert_folder, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    rows = [row | {"reply": reply} for row, (_, reply) in zip(labelled(), pairs, strict=True)]
    task = {"name": "text-classification", "pair": "reply"}
    finished = run(bert_folder, task, rows, "full", tmp_path)
    answers = load_run(finished.path).predict([{"text": text, "reply": reply} for text, reply in pairs])
    encoder = sentence_transformers.CrossEncoder(str(finished.trained), device="cpu")
    theirs = encoder.predict(pairs, apply_softmax=True)
    names = [encoder.model.config.id2label[i] for i in range(3)]
    for row, answer in zip(theirs.tolist(), answers, strict=True):
        assert dict(zip(names, row, strict=True)) == pytest.approx(dict(answer["scores"]), abs=1e-5)


@pytest.mark.parametrize("strategy", ["lora", {"name": "prompt", "virtual_tokens": 3}], ids=["lora", "prompt"])
def test_auto_classes_of_peft_open_a_classifiers_run(strategy, bert_folder, tmp_path):
    finished = run(bert_folder, "text-classification", labelled(), strategy, tmp_path)
    config = AutoConfig.from_pretrained(finished.trained, subfolder="config")
    model = AutoPeftModelForSequenceClassification.from_pretrained(finished.trained, id2label=config.id2label).eval()
    tokenizer = AutoTokenizer.from_pretrained(finished.trained)
    for text, expected in zip(TEXTS, scores(load_run(finished.path)), strict=True):
        with torch.no_grad():
            answer = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        names = [model.config.id2label[i] for i in range(3)]
        assert dict(zip(names, answer.tolist(), strict=True)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("vocabulary", [None, 448], ids=["as-the-tokenizer", "padded"])
@pytest.mark.parametrize("strategy", ["lora", "prompt", "prefix"])
def test_auto_classes_of_peft_continue_a_text_as_the_run_does(strategy, vocabulary, tmp_path):
    """Real vocabularies are padded, and PEFT cuts them to the tokenizer's, which must lose nothing."""
    base = tiny_llama(tmp_path / "base", **({} if vocabulary is None else {"vocab_size": vocabulary}))
    rows = [{"prompt": text, "completion": "Yes, that is so."} for text in TEXTS]
    options = strategy if strategy == "lora" else {"name": strategy, "virtual_tokens": 3}
    finished = run(base, "causal-lm", rows, options, tmp_path)
    model = AutoPeftModelForCausalLM.from_pretrained(finished.trained).eval()
    tokenizer = AutoTokenizer.from_pretrained(finished.trained)
    answers = load_run(finished.path).predict([{"prompt": TEXTS[0]}], options={"max_new_tokens": 8})
    ours = next(iter(answers))["completion"]
    messages = [{"role": "user", "content": TEXTS[0]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        told = model.generate(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], max_new_tokens=8,
                              do_sample=False)[0]  # fmt: skip
    assert tokenizer.decode(told[ids["input_ids"].shape[1] :], skip_special_tokens=True).strip() == ours.strip()


def test_an_image_pipeline_gives_the_runs_scores(tmp_path):
    base, rows = tiny_vit(tmp_path / "base"), []
    for number in range(24):
        file = tmp_path / f"{number}.png"
        Image.new("RGB", (SIDE, SIDE), (10 * number, 100 * (number % 2), 200 - 5 * number)).save(file)
        rows.append({"image": str(file), "label": ("odd", "even")[number % 2]})
    finished = run(base, "image-classification", rows, "full", tmp_path, times=1)
    classify = pipeline("image-classification", model=str(finished.trained), dtype="float32")
    answers = load_run(finished.path).predict([{"image": row["image"]} for row in rows[:3]])
    for row, answer in zip(rows, answers, strict=False):
        theirs = {found["label"]: found["score"] for found in classify(row["image"])}
        assert theirs == pytest.approx(dict(answer["scores"]), abs=1e-5)
