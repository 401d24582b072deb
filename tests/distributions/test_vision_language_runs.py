"""Whole runs on pictures: a tiny model learns colours and looks, and with pictures exchanged it is said not to."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch

from ftengine import Recipe, fine_tune, load_run

pytestmark = pytest.mark.slow

sys.path.append(str(Path(__file__).parents[2] / "plugins" / "ftengine-vision-language" / "tests"))


@pytest.fixture
def recipe(installed, tmp_path):
    pytest.importorskip("torchvision")
    from vision_models import square, tiny

    torch.manual_seed(0)
    for part in tiny("llava"):
        part.save_pretrained(tmp_path / "model")

    def make(name, *, exchanged=False):
        rng, rows = random.Random(0), []
        (tmp_path / name).mkdir()
        for i in range(60):
            colour = rng.choice(["red", "green", "blue"])
            shown = rng.choice(["red", "green", "blue"]) if exchanged else colour
            square(shown, 40 + i, 32 + i % 7).save(tmp_path / name / f"{i}.png")
            turns = [{"from": "human", "value": "<image>\nwhat colour is it ?"}, {"from": "gpt", "value": colour}]
            rows.append({"image": f"{name}/{i}.png", "conversations": turns})
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return Recipe.make(
            {
                "model": {"source": str(tmp_path / "model")},
                "task": "image-text-to-text",
                "data": {"train": str(tmp_path / f"{name}.jsonl"), "validation": 0.2, "test": 0.3},
                "strategy": "full",
                "train": {"epochs": 30, "batch_size": 8, "learning_rate": 0.01, "precision": "float32"},
                "evaluation": {"robustness": ["blank-picture"], "training_sample": None, "resamples": 200},
                "output": str(tmp_path / f"run-{name}"),
            }
        )

    return make


def test_it_looks_where_pictures_decide(recipe, tmp_path):
    run = fine_tune(recipe("right"))
    figures = run.evaluation["tuned"]
    assert figures["vqa_accuracy"]["value"] > 0.8
    found = {finding.source: finding for finding in run.verdict.findings}
    assert found["looking"].level == "good"
    assert "robustness" not in found  # a worse figure without the picture is wanted
    [answer] = load_run(run.path).predict(
        [{"prompt": "what colour is it ?", "image": str(tmp_path / "right" / "0.png")}]
    )
    run.merge(tmp_path / "merged")

    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    from PIL import Image

    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what colour is it ?"}]}]
    asked = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[asked], images=[[Image.open(tmp_path / "right" / "0.png")]], return_tensors="pt")
    output = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(output, skip_special_tokens=True).strip() == answer["completion"]


def test_exchanged_pictures_are_not_reported_as_used(recipe):
    run = fine_tune(recipe("exchanged", exchanged=True))
    assert not [one for one in run.verdict.findings if one.source == "looking" and one.level == "good"]
    assert run.evaluation["tuned"]["vqa_accuracy"]["value"] < 0.8
