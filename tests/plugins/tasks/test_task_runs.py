"""Whole runs of the tasks beyond causal language modelling: plan, train, reopen, predict from a file, merge."""

import json
import random
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from expected import raises
from PIL import Image
from rows import photos, tagged, write_rows
from tiny import tiny_resnet, tiny_t5, tiny_vit

from ftengine import Recipe, fine_tune, load_run, plan
from ftengine.cli import main
from ftengine.engine.predict import predict_file
from ftengine.errors import DataError


def reversed_words(count=32):
    rng = random.Random(0)
    words = ["the", "fox", "dog", "lazy", "quick", "brown"]
    chosen = [rng.sample(words, 3) for _ in range(count)]
    return [{"prompt": " ".join(x), "completion": " ".join(reversed(x))} for x in chosen]


@pytest.fixture(params=["seq2seq-lm", "token-classification", "image-classification", "image-classification/resnet"])
def case(request, bert_folder, tmp_path, monkeypatch):
    """A recipe for a task and rows to answer; paths are relative, as a user writes them."""
    monkeypatch.chdir(tmp_path)
    task, _, model = request.param.partition("/")
    if task == "seq2seq-lm":
        source, data = tiny_t5(tmp_path / "t5"), write_rows(tmp_path / "data.jsonl", reversed_words())
        asked = [{"prompt": "the lazy fox"}, {"prompt": "quick"}]
    elif task == "token-classification":
        source, data = bert_folder, write_rows(tmp_path / "data.jsonl", tagged(32))
        asked = [{"tokens": ["anna", "likes", "paris"]}, {"text": "the fox"}]
    else:
        source = tiny_resnet(tmp_path / "resnet") if model else tiny_vit(tmp_path / "vit")
        data = photos(tmp_path / "photos")
        asked = [{"image": "photos/dark/0.png"}, {"image": "photos/light/1.png"}]
    recipe = {
        "model": {"source": str(source)},
        "task": task,
        "data": {"train": Path(data).name, "validation": 0.25},
        "strategy": "full",
        "train": {"epochs": 4, "batch_size": 8, "learning_rate": 0.003},
        "evaluation": {"resamples": 100, "training_sample": None},
        "output": "run",
    }
    return recipe, asked


@pytest.mark.slow
def test_predict_writes_each_row_with_its_answer(case, tmp_path):
    """What a run learns, keeps and merges is tests/engine/test_matrix.py's."""
    content, asked = case
    recipe = Recipe.make(content, ["train.max_steps=2"])
    planned = plan(recipe, measure=False)
    assert (planned.model["new_modules"] == []) == (content["task"] == "seq2seq-lm")
    assert planned.steps["unit"] == ("images" if content["task"] == "image-classification" else "tokens")
    fine_tune(recipe)
    write_rows(tmp_path / "asked.jsonl", asked)
    predict_file(load_run("run"), "asked.jsonl", tmp_path / "out.jsonl", batch_size=1)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(line.pop("prediction") for line in lines)
    assert [{key: value for key, value in line.items() if value is not None} for line in lines] == asked


def test_init_and_plan_offer_each_task(case):
    content, _ = case
    arguments = ["--task", content["task"], "--model", content["model"]["source"], "--data", content["data"]["train"]]
    written = CliRunner().invoke(main, ["init", "r.yaml", "--strategy", "full", *arguments], catch_exceptions=False)
    assert written.exit_code == 0, written.output
    with open("r.yaml") as file:
        task = yaml.safe_load(file)["task"]
    assert (task if isinstance(task, str) else task["name"]) == content["task"]
    shown = CliRunner().invoke(main, ["plan", "r.yaml", "--no-measure"], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    assert ("images" in shown.output) == (content["task"] == "image-classification")


def test_a_list_of_paths_gives_the_figures_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    tiny_vit(tmp_path / "vit")
    lines = [f"{label}/{i}.png,{label}" for label in ("dark", "light") for i in range(8)]
    (tmp_path / "photos" / "list.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    content = {
        "model": {"source": "vit"},
        "task": "image-classification",
        "data": {"validation": 0.25},
        "strategy": "full",
        "train": {"max_steps": 2, "precision": "float32"},
        "evaluation": {"resamples": 100},
    }
    figures = []
    for source in ("photos/list.csv", "photos"):
        if source == "photos":
            (tmp_path / "photos" / "list.csv").unlink()
        overrides = [f"data.train={source}", f"output=run-{len(figures)}"]
        figures.append(fine_tune(Recipe.make(content, overrides)).evaluation)
        judged = figures[-1]["training"]["judged"]
        judged["rows"] = [row[:2] for row in judged["rows"]]  # places differ: a line of the list, a file
    assert figures[0] == figures[1]


def test_a_damaged_image_ends_the_run_before_the_model_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    bad = tmp_path / "photos" / "dark" / "3.png"
    bad.write_bytes(bad.read_bytes()[:200])
    content = {
        "model": {"source": str(tiny_vit(tmp_path / "vit"))},
        "task": "image-classification",
        "data": {"train": "photos", "validation": None},
        "strategy": "full",
        "train": {"max_steps": 1},
    }
    with raises(DataError, "photos/dark/3.png: ", "`image`", "on_error=skip"):
        fine_tune(Recipe.make(content))
    assert not (tmp_path / "runs").exists()
    planned = plan(Recipe.make(content, ["data.on_error=skip"]), measure=False)
    assert planned.data["encoded"]["train"]["examples"] == 15
    assert any("photos/dark/3.png" in warning for warning in planned.warnings)


def test_another_image_behind_a_path_is_other_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    tiny_vit(tmp_path / "vit")
    content = {
        "model": {"source": "vit"},
        "task": "image-classification",
        "data": {"train": "photos", "validation": 0.25},
        "strategy": "full",
        "train": {"max_steps": 1},
        "evaluation": {"resamples": 100},
        "output": "run",
    }
    run = fine_tune(Recipe.make(content))
    run.evaluate()
    for i in range(8):
        Image.new("RGB", (9, 9 + i)).save(tmp_path / "photos" / "dark" / f"{i}.png")
    with raises(DataError, "data files"):
        run.evaluate()
