"""Numbers are learnt in whatever unit they are, and all that is written is in that unit."""

import json
import random
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from expected import raises
from rows import sentences, write_rows
from runs import Heard, curve, interrupt
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from tiny import tiny_bert, tiny_llama
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from ftengine import Recipe, fine_tune, load_run
from ftengine.api import Labels, LoadedModel
from ftengine.engine import proof
from ftengine.engine.export import export_run
from ftengine.errors import MergeChangedOutputs
from ftengine.model.target_scale import StandardisedTargets, TargetScale, scale_targets
from ftengine_builtins.exporters import TransformersExporter
from ftengine_builtins.strategies.lora import LoRA

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


def make_recipe(folder, bert_folder, name, mean=0.0, std=1.0, source=None, **changed):
    """Build a recipe for numbers of some mean and spread."""
    data = write_rows(folder / f"{name}.jsonl", targets(48, mean, std))
    content = {
        "model": {"source": str(source or bert_folder)},
        "task": {"name": "text-classification", "kind": "regression"},
        "data": {"train": str(data), "validation": 0.2},
        "strategy": {"name": "lora", "rank": 4, "dropout": 0.1},
        "train": {"epochs": 6, "batch_size": 8, "learning_rate": 0.01, "precision": "float32"},
        "evaluation": {"resamples": 100, "answers": None, "training_sample": None, "reuse_base": False},
        "output": str(folder / name),
    }
    for key, value in changed.items():
        section, _, option = key.partition("__")
        content[section] = {**content[section], option: value} if option else value
    return Recipe.make(content)


@pytest.fixture
def recipe(bert_folder, tmp_path):
    return partial(make_recipe, tmp_path, bert_folder)


@pytest.fixture(scope="module")
def far(bert_folder, tmp_path_factory):
    """A run on numbers of 1,000,000 ± 10, of a checkpoint in bfloat16, whose base is measured in bfloat16."""
    folder = tmp_path_factory.mktemp("far")
    AutoModel.from_pretrained(bert_folder, dtype=torch.bfloat16).save_pretrained(folder / "bert")
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(folder / "bert")
    source = folder / "bert"
    return fine_tune(make_recipe(folder, source, "run", 1_000_000.0, 10.0, train__precision="bfloat16")).path


def predicted(run, side="tuned"):
    columns = pq.read_table(run.path / "predictions" / f"validation-{side}.parquet").to_pydict()
    return np.ravel(columns["target"]), np.ravel(columns["value"])


@pytest.mark.slow
def test_the_unit_of_the_numbers_changes_nothing_but_the_unit(recipe):
    plain, prices = (fine_tune(recipe(*each, train__epochs=9)) for each in (["plain"], ["prices", MEAN, STD]))
    assert [line["loss"] for line in curve(plain.path) if "loss" in line] == pytest.approx(
        [line["loss"] for line in curve(prices.path) if "loss" in line], rel=1e-2
    )
    assert predicted(prices)[1] == pytest.approx(MEAN + STD * predicted(plain)[1], abs=0.01 * STD)
    assert prices.evaluation["tuned"]["r2"]["value"] > 0.5
    assert abs(prices.evaluation["base"]["r2"]["value"]) < 0.2  # a new layer answers about the mean
    target, value = predicted(prices)
    figures = {name: prices.evaluation["tuned"][name]["value"] for name in ("mse", "mae", "r2")}
    expected = (mean_squared_error(target, value), mean_absolute_error(target, value), r2_score(target, value))
    assert tuple(figures.values()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [{"name": "lora", "rank": 4}, {"name": "full"}])
def test_what_is_written_answers_in_the_unit_of_the_data(recipe, tmp_path, bert_folder, strategy):
    from peft import PeftModel

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


@pytest.mark.slow
def test_a_run_that_goes_on_has_the_curve_of_an_uninterrupted_one(recipe):
    settings = {"train__checkpoint_every": 2, "train__validate_every": 3}
    whole = fine_tune(recipe("whole", MEAN, STD, **settings))
    stopped = recipe("stopped", MEAN, STD, **settings)
    interrupt(stopped, after=5)
    resumed = fine_tune(stopped, resume=True)
    assert curve(resumed.path) == curve(whole.path)
    assert resumed.evaluation == whole.evaluation


@pytest.mark.slow
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


@pytest.mark.slow
def test_auto_merges_into_float32_what_half_precision_cannot_hold(far, tmp_path):
    rows, run = targets(4), load_run(far)
    assert run.merge(tmp_path / "merged").dtype == "float32"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    tokens = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    exact = [answer["value"] for answer in load_run(far, precision="float32").predict(rows)]
    with torch.no_grad():
        assert merged(**tokens).logits[:, 0].tolist() == pytest.approx(exact, abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "message"), [("float16", "are not finite any more"), ("bfloat16", "of the standard deviation of those")]
)
def test_a_dtype_that_cannot_hold_the_numbers_is_refused(far, tmp_path, dtype, message):
    for write in (
        partial(load_run(far).merge, tmp_path / "out", dtype),
        partial(
            export_run, load_run(far), TransformersExporter(TransformersExporter.Config(dtype=dtype)), tmp_path / "out"
        ),
    ):
        with raises(MergeChangedOutputs, f"{dtype} cannot hold", message, "--dtype float32"):
            write()
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_merge_that_forgets_what_was_trained_is_found_beside_a_large_mean(far, tmp_path, monkeypatch):
    def forgetful(strategy, loaded):
        for name, parameter in loaded.module.named_parameters():
            if name.endswith("lora_b"):
                parameter.data.zero_()
        merge(strategy, loaded)

    merge = LoRA.merge
    monkeypatch.setattr(LoRA, "merge", forgetful)
    with raises(MergeChangedOutputs, "rounding explains at most"):
        load_run(far).merge(tmp_path / "merged")


def test_numbers_of_another_model_are_far_apart_beside_a_large_mean():
    tuned = [np.array([250_000.0 + x]) for x in (-10, 3, 12)]
    other = [x + 5 for x in tuned]
    asked = proof.Asked("test", (), lambda opened: [], tuned, base=[], mean=250_000.0)
    assert min(asked.far(other, tuned)) > 0.01
    assert max(asked.far([np.float32(x + 0.02) for x in tuned], tuned)) < 1e-3


@pytest.mark.slow
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


class TwoHeads(nn.Module):
    """Averages two heads, as distilled image classifiers do."""

    base_model_prefix = "model"

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"body": nn.Linear(8, 8), "head": nn.Linear(8, 1), "distilled": nn.Linear(8, 1)})

    def forward(self, x):
        x = self.model["body"](x).tanh()
        return (self.model["head"](x) + self.model["distilled"](x)) / 2


class ConvolutionalHead(nn.Sequential):
    """Gives its output by a convolution, as SqueezeNet does."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("make", "new", "shape"),
    [(TwoHeads, ("model.head", "model.distilled"), (5, 8)), (ConvolutionalHead, ("1",), (5, 3, 8, 8))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_layers_are_found_by_their_names_and_all_get_the_scale(make, new, shape, dtype):
    torch.manual_seed(0)
    module, x = make(), torch.randn(shape)
    plain = module(x)
    loaded = LoadedModel(module.to(dtype), None, "here", "image-classification", new)
    scale_targets(loaded, Labels("regression", ("label",), mean=MEAN, std=STD))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        assert torch.allclose(module(x), MEAN + STD * plain, atol=(1e-5 if dtype is torch.float32 else 0.03) * STD)
    assert len(StandardisedTargets(module)._scales) == len(new)


@pytest.mark.parametrize(
    ("mean", "std", "advice"),
    [(152_000.0, 77_000.0, "by 100,000 say"), (1.7e9, 60.0, "float32 has too few digits"), (1.0, 2.0, "")],
)
def test_what_cannot_be_standardised_is_to_be_changed_in_the_data(mean, std, advice):
    text = StandardisedTargets(nn.Linear(4, 4)).advice(Labels("regression", ("label",), mean=mean, std=std))
    assert advice in text
    assert bool(text) == bool(advice)


@pytest.mark.parametrize(("bias", "far"), [(MEAN + STD, False), (MEAN / 1000, False), (1000 * MEAN, True)])
def test_a_layer_that_learnt_another_unit_is_named(bias, far):
    module = nn.Sequential(nn.Linear(4, 1))
    nn.init.constant_(module[0].bias, bias)
    labels = Labels("regression", ("label",), mean=MEAN, std=STD)
    scale_targets(LoadedModel(module, None, "here", "sequence-classification"), labels)
    assert ("another unit" in StandardisedTargets(module).advice(labels)) == far


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
