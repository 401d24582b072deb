"""Numbers are learnt in whatever unit they are, and all that is written is in that unit."""

import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rows import sentences, write_rows
from runs import Heard, curve, interrupt
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from tiny import tiny_bert, tiny_llama
from torch import nn

from ftengine import Recipe, fine_tune, load_run
from ftengine.model.target_scale import StandardisedTargets, TargetScale

MEAN, STD = 152_000.0, 77_000.0


def targets(count, mean=0.0, std=1.0):
    rng = random.Random(0)
    rows = list(sentences(count, rng))
    names = sorted({row["label"] for row in rows})
    return [{**row, "label": mean + std * (names.index(row["label"]) + rng.gauss(0, 0.1))} for row in rows]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A tiny BERT that learns in few steps."""
    return tiny_bert(tmp_path_factory.mktemp("models") / "bert", initializer_range=0.1)


@pytest.fixture
def recipe(bert_folder, tmp_path):
    """Build a recipe for numbers of some mean and spread."""

    def build(name, mean=0.0, std=1.0, source=None, **changed):
        data = write_rows(tmp_path / f"{name}.jsonl", targets(48, mean, std))
        content = {
            "model": {"source": str(source or bert_folder)},
            "task": {"name": "text-classification", "kind": "regression"},
            "data": {"train": str(data), "validation": 0.2},
            "strategy": {"name": "lora", "rank": 4, "dropout": 0.1},
            "train": {"epochs": 6, "batch_size": 8, "learning_rate": 0.01, "precision": "float32"},
            "evaluation": {"resamples": 100, "answers": None, "training_sample": None, "reuse_base": False},
            "output": str(tmp_path / name),
        }
        for key, value in changed.items():
            section, _, option = key.partition("__")
            content[section] = {**content[section], option: value} if option else value
        return Recipe.make(content)

    return build


def predicted(run, side="tuned"):
    columns = pq.read_table(run.path / "predictions" / f"validation-{side}.parquet").to_pydict()
    return np.ravel(columns["target"]), np.ravel(columns["value"])


def test_the_unit_of_the_numbers_changes_nothing_but_the_unit(recipe):
    plain, prices = fine_tune(recipe("plain")), fine_tune(recipe("prices", MEAN, STD))
    assert [line["loss"] for line in curve(plain.path) if "loss" in line] == pytest.approx(
        [line["loss"] for line in curve(prices.path) if "loss" in line], rel=1e-2
    )
    assert predicted(prices)[1] == pytest.approx(MEAN + STD * predicted(plain)[1], abs=0.01 * STD)
    assert prices.evaluation["tuned"]["r2"]["value"] > 0.2
    assert abs(prices.evaluation["base"]["r2"]["value"]) < 0.2  # a new layer answers about the mean
    target, value = predicted(prices)
    figures = {name: prices.evaluation["tuned"][name]["value"] for name in ("mse", "mae", "r2")}
    expected = (mean_squared_error(target, value), mean_absolute_error(target, value), r2_score(target, value))
    assert tuple(figures.values()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("strategy", [{"name": "lora", "rank": 4}, {"name": "full"}])
def test_what_is_written_answers_in_the_unit_of_the_data(recipe, tmp_path, bert_folder, strategy):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = fine_tune(recipe("prices", MEAN, STD, strategy=strategy))
    run.merge(tmp_path / "merged")
    rows = targets(4, MEAN, STD)
    own = [answer["value"] for answer in load_run(run.path).predict(rows)]
    tokens = AutoTokenizer.from_pretrained(bert_folder)(
        [row["text"] for row in rows], padding=True, return_tensors="pt"
    )
    opened = [AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")]
    if strategy["name"] == "lora":
        base = AutoModelForSequenceClassification.from_pretrained(bert_folder, num_labels=1)
        opened.append(PeftModel.from_pretrained(base, run.trained))
    for model in opened:
        with torch.no_grad():
            assert model.eval()(**tokens).logits[:, 0].tolist() == pytest.approx(own, rel=1e-5)


def test_a_run_that_goes_on_has_the_curve_of_an_uninterrupted_one(recipe):
    settings = {"train__checkpoint_every": 2, "train__validate_every": 3}
    whole = fine_tune(recipe("whole", MEAN, STD, **settings))
    stopped = recipe("stopped", MEAN, STD, **settings)
    interrupt(stopped, after=5)
    resumed = fine_tune(stopped, resume=True)
    assert curve(resumed.path) == curve(whole.path)
    assert resumed.evaluation == whole.evaluation


def test_a_run_starts_from_an_adapter_and_from_a_merged_model_where_they_ended(recipe, tmp_path):
    first = fine_tune(recipe("first", MEAN, STD))
    first.merge(tmp_path / "merged")
    ended = first.evaluation["tuned"]["mse"]["value"]
    still = {"train__learning_rate": 1e-12}
    data = {"train": str(tmp_path / "first.jsonl"), "validation": 0.2}
    strategy = {"name": "lora", "rank": 4, "start_from": str(first.trained)}
    again = fine_tune(recipe("again", MEAN, STD, data=data, strategy=strategy, **still))
    assert again.evaluation["tuned"]["mse"]["value"] == pytest.approx(ended, rel=1e-4)
    merged = fine_tune(recipe("more", MEAN, STD, source=tmp_path / "merged", data=data, **still))
    assert merged.evaluation["base"]["mse"]["value"] == pytest.approx(ended, rel=1e-4)
    assert merged.evaluation["tuned"]["mse"]["value"] == pytest.approx(ended, rel=1e-4)


def test_bfloat16_leaves_the_difference_of_years(recipe):
    run = fine_tune(recipe("years", 2000.0, 5.0, train__precision="bfloat16"))
    target, value = predicted(run)
    assert r2_score(target, value) > 0.2
    assert len(np.unique(value.round(2))) > len(value) / 2


def test_a_layer_without_bias_gets_the_scale_and_advice_on_the_mean(recipe, tmp_path):
    source = tiny_llama(tmp_path / "llama", initializer_range=0.1)
    heard = Heard()
    fine_tune(recipe("years", 2000.0, 5.0, source=source, train__max_steps=1), listener=heard)
    assert any("subtract 2,00" in text for text in heard.said)
    heard = Heard()
    plain = fine_tune(recipe("plain", 3.0, 1.0, source=source), listener=heard)
    prices = fine_tune(recipe("prices", 3000.0, 1000.0, source=source), listener=heard)
    assert not any("subtract" in text for text in heard.said)
    assert predicted(prices)[1] == pytest.approx(1000 * predicted(plain)[1], abs=50)


@pytest.mark.parametrize("bias", [True, False])
def test_standardising_changes_the_parameters_and_not_the_function(bias):
    torch.manual_seed(0)
    layer = nn.Linear(8, 1, bias=bias)
    layer.register_forward_hook(TargetScale(layer, MEAN, STD))
    layer.weight.requires_grad_(False)
    x, before = torch.randn(5, 8), layer.weight.clone()
    expected = layer(x)
    standard = StandardisedTargets(layer)
    assert not torch.equal(layer.weight, before)
    assert torch.allclose(layer(x), expected, atol=1e-6 * STD)
    standard.restore()
    assert torch.equal(layer.weight, before)  # which did not train
    assert torch.allclose(layer(x), expected, atol=1e-6 * STD)


def test_labels_hold_mean_and_spread_of_the_training_split_alone(recipe):
    run = fine_tune(recipe("prices", MEAN, STD, train__epochs=1))
    stored = json.loads((run.trained / "ftengine.json").read_text())["labels"]
    every = [row["label"] for row in targets(48, MEAN, STD)]
    assert stored["mean"] != pytest.approx(np.mean(every), rel=1e-9)
    assert stored["mean"] == pytest.approx(np.mean(every), abs=0.3 * STD)
    assert stored["std"] == pytest.approx(np.std(every), rel=0.2)
