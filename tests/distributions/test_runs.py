"""Whole runs with the distributions' strategies: trained, interrupted and resumed, opened again, merged."""

import pytest
import torch
from expected import raises
from peft import PeftModel
from runs import interrupt
from tiny import tiny_bert
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ftengine import Recipe, fine_tune, load_run
from ftengine.errors import DataError, RecipeError

pytestmark = pytest.mark.usefixtures("installed")

GENERATING = [
    {"name": "peft-adalora", "init_r": 6, "target_r": 3, "tinit": 2, "tfinal": 3},
    {"name": "peft-ia3"},
    {"name": "peft-osf"},
    {"name": "peft-shira", "r": 4},
    {"name": "peft-vblora", "vector_length": 32, "num_vectors": 16, "vblora_dropout": 0.1},
]
CLASSIFYING = ["bitfit", {"name": "peft-oft", "oft_block_size": 8, "module_dropout": 0.1}]


def recipe(model, task, data, strategy, output):
    return Recipe.make(
        {
            "model": {"source": str(model)},
            "task": task,
            "data": {"train": str(data), "validation": 0.25},
            "strategy": strategy,
            "train": {
                "epochs": 3,
                "batch_size": 5,
                "learning_rate": 0.01,
                "precision": "float32",
                "checkpoint_every": 2,
            },
            "evaluation": {"resamples": 100},
            "output": str(output),
        }
    )


def test_methods_of_peft_are_refused_where_parameters_are_divided(llama_folder, tmp_path, answers):
    """PEFT's functions save the module that was prepared, of which each process holds a part."""
    asked = recipe(llama_folder, "causal-lm", answers, "peft-ia3", tmp_path / "run")
    asked.train.parallel = "fsdp"
    with raises(RecipeError, "peft-ia3"):
        fine_tune(asked)
    asked = recipe(llama_folder, "causal-lm", tmp_path / "absent.jsonl", "bitfit", tmp_path / "run")
    asked.train.parallel = "fsdp"
    with raises(DataError, "no data file"):  # the next thing that is wrong
        fine_tune(asked)


def learns_resumes_reopens_and_merges(make, folder, loss="loss", same_shapes=True):
    """Return the finished run; `same_shapes`: what is opened multiplies matrices of the shapes that were trained."""
    whole = fine_tune(make(folder / "whole"))
    figures = whole.evaluation
    assert figures["tuned"][loss]["value"] < figures["base"][loss]["value"]
    interrupt(make(folder / "interrupted"), after=4)
    resumed = fine_tune(make(folder / "interrupted"), resume=True)
    (name,) = [file.name for file in whole.trained.glob("*.safetensors")]
    assert (resumed.trained / name).read_bytes() == (whole.trained / name).read_bytes()
    assert resumed.evaluation == figures
    again = load_run(whole.path)
    reopened = again.evaluate()["tuned"]
    if same_shapes:
        assert reopened == figures["tuned"]
    else:  # the zeros of a rank that was given up are summed, or are not there: float32 rounds otherwise
        assert reopened[loss]["value"] == pytest.approx(figures["tuned"][loss]["value"], rel=1e-6)
    report = again.merge(folder / "merged")
    assert report.difference <= report.tolerance < report.effect
    return again


@pytest.mark.parametrize("strategy", GENERATING, ids=lambda strategy: strategy["name"])
def test_a_language_model(strategy, llama_folder, answers, tmp_path):
    def make(output):
        return recipe(llama_folder, "causal-lm", answers, strategy, output)

    learns_resumes_reopens_and_merges(make, tmp_path, same_shapes=strategy["name"] != "peft-adalora")


@pytest.mark.parametrize("strategy", CLASSIFYING, ids=["bitfit", "peft-oft"])
def test_a_classifier_with_a_new_head(strategy, reviews, tmp_path):
    # With weights of the usual size a model as small answers every text alike.
    bert_folder = tiny_bert(tmp_path / "bert", initializer_range=0.2)

    def make(output):
        return recipe(bert_folder, "text-classification", reviews, strategy, output)

    run = learns_resumes_reopens_and_merges(make, tmp_path, loss="nll")
    text = "The film number 3 was wonderful."
    (predicted,) = run.predict([{"text": text}])
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    models = [opened.eval()]
    if strategy != "bitfit":  # in PEFT, on a base whose head is as new as it was here
        torch.manual_seed(5)
        base = AutoModelForSequenceClassification.from_pretrained(bert_folder, num_labels=2)
        models.append(PeftModel.from_pretrained(base, str(run.trained)).eval())
    inputs = AutoTokenizer.from_pretrained(bert_folder)(text, return_tensors="pt")
    for model in models:
        with torch.no_grad():
            likely = model(**inputs).logits.softmax(-1).max()
        assert likely.item() == pytest.approx(max(predicted["scores"].values()), abs=1e-4)
