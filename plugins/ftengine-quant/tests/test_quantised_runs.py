"""LoRA on quantised bases in whole runs: it learns, resumes bit for bit, answers again, and opens elsewhere."""

import json
import shutil

import pytest
import torch
import yaml
from expected import raises
from peft import PeftModel
from quantised_models import bert, llama
from transformers import AutoModelForCausalLM, AutoTokenizer

import ftengine_quant
from ftengine import Recipe, fine_tune, load_run, registry_of
from ftengine.api import SilentListener
from ftengine.engine.count_parameters import count_parameters
from ftengine.errors import NotMergeable, RecipeError
from ftengine.model import count

LOADERS = {
    "nf4": {"name": "bitsandbytes", "double_quant": True},
    "int8": {"name": "bitsandbytes", "bits": 8},
    "torchao": "torchao",
}
QUESTION = "what is 3 + 4 ?"


class Interruption(BaseException):
    """A lost machine."""


class Interrupting(SilentListener):
    """Stops a run after five training steps."""

    def __init__(self):
        self.left, self.training = 5, False

    def phase(self, name, total=None):
        self.training = name == "train"

    def advance(self, steps=1, **figures):
        if self.training and figures:
            self.left -= 1
            if self.left < 0:
                raise Interruption


@pytest.fixture(scope="module")
def registry():
    return registry_of({"quant": ftengine_quant})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    rows = [{"prompt": f"what is {a} + {b} ?", "completion": f" it is {a + b} ."} for a in range(5) for b in range(8)]
    file = tmp_path_factory.mktemp("data") / "answers.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def recipe(source, data, output, loader, **changes):
    content = {
        "model": {"source": str(source), "loader": loader},
        "task": "causal-lm",
        "data": {"train": str(data), "validation": 0.25},
        "strategy": {"name": "lora", "rank": 4, "dropout": 0.1},
        "train": {
            "epochs": 4,
            "batch_size": 5,
            "learning_rate": 0.01,
            "optimizer": {"name": "adamw-8bit", "min_8bit_size": 256},
            "checkpoint_every": 2,
            "precision": "float32",
        },
        "evaluation": {"resamples": 100},
        "output": str(output),
    }
    return Recipe.make(content | changes)


@pytest.fixture(scope="module", params=LOADERS)
def run(request, base, answers, registry, tmp_path_factory):
    output = tmp_path_factory.mktemp(request.param) / "run"
    return fine_tune(recipe(base, answers, output, LOADERS[request.param]), registry=registry)


def test_it_learns(run):
    assert run.evaluation["tuned"]["loss"]["value"] < 0.8 * run.evaluation["base"]["loss"]["value"]


def test_packed_weights_count_as_those_that_were_read(run, base, registry):
    plain, trained = count(AutoModelForCausalLM.from_pretrained(base))[1], run.directory.read_json("training.json")
    assert trained["total_parameters"] == plain + trained["trainable_parameters"]
    counted = count_parameters(run.recipe, registry=registry)
    assert counted.base_parameters == plain
    (pattern,) = counted.patterns.values()
    assert pattern["parameters"] == plain - 40 * 64 - 5 * 64 + pattern["trainable_parameters"]  # embeddings and norms


def test_it_resumes_bit_for_bit(run, registry, tmp_path):
    content = run.recipe.resolved() | {"output": str(tmp_path / "run")}
    with pytest.raises(Interruption):
        fine_tune(Recipe.make(content), registry=registry, listener=Interrupting())
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
    resumed = fine_tune(Recipe.make(content), registry=registry, resume=True)
    name = "adapter_model.safetensors"
    assert (resumed.trained / name).read_bytes() == (run.trained / name).read_bytes()
    assert resumed.evaluation == run.evaluation


def test_it_evaluates_and_answers_again(run, registry):
    again = load_run(run.path, registry=registry)
    assert again.evaluate()["tuned"] == run.evaluation["tuned"]
    (tuned,), (base,) = (list(again.predict([{"prompt": QUESTION}], base=which)) for which in (False, True))
    assert tuned != base


def test_merging_is_refused_with_a_way_out(run, registry, tmp_path):
    with raises(NotMergeable, "quantised", "model.loader"):
        load_run(run.path, registry=registry).merge(tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_adapter_opens_on_the_full_precision_base_in_peft(run, base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    inputs = tokenizer(QUESTION, return_tensors="pt")
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base).eval()(**inputs).logits
        opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(run.trained)).eval()
        tuned = opened(**inputs).logits
        merged = opened.merge_and_unload()(**inputs).logits
    torch.testing.assert_close(merged, tuned, rtol=1e-3, atol=1e-3)
    assert (tuned - plain).norm() > 0.1 * plain.norm()
    assert tuned.argmax(-1)[0, -1] == tokenizer.convert_tokens_to_ids("it")


def test_the_run_opens_on_the_full_precision_base(run, tmp_path):
    """Where the quantiser is not installed: with the loader changed, weights are still those trained on."""
    folder = shutil.copytree(run.path, tmp_path / "run")
    content = yaml.safe_load((folder / "recipe.yaml").read_text())
    content["model"]["loader"] = "auto"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    opened = load_run(folder)
    full, packed = opened.evaluate()["tuned"]["loss"]["value"], run.evaluation["tuned"]["loss"]["value"]
    assert full != packed
    assert full < run.evaluation["base"]["loss"]["value"]
    report = opened.merge(tmp_path / "merged")
    assert report.difference <= report.tolerance < report.effect


def test_full_tuning_is_refused(base, answers, registry, tmp_path):
    with raises(RecipeError, "strategy full"):
        fine_tune(recipe(base, answers, tmp_path / "run", "torchao", strategy="full"), registry=registry)
    assert not (tmp_path / "run" / "environment.json").exists()


def test_a_classifier_with_a_new_head(registry, tmp_path):
    starts = {"asked": "what is", "told": "it is"}
    rows = [
        {"text": f"{starts[label]} {a} + {b}", "label": label} for a in range(5) for b in range(5) for label in starts
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    made = recipe(bert(tmp_path / "bert"), data, tmp_path / "run", "bitsandbytes", task="text-classification")
    run = fine_tune(made, registry=registry)
    again = load_run(run.path, registry=registry)
    assert again.evaluate()["tuned"] == run.evaluation["tuned"]
    assert run.evaluation["tuned"]["nll"]["value"] < run.evaluation["base"]["nll"]["value"]
