"""Losses in which examples meet: all of an effective batch, at a micro-batch's memory, on one process or two."""

import json
import random

import pytest
import torch
from processes import together, train
from runs import curve, interrupt, losses

from ftengine import Recipe, fine_tune, load_run
from ftengine.model import read_tensors
from ftengine_builtins.tasks import Embedding

WORDS = ["red", "blue", "green", "fox", "dog", "cat", "house", "river", "stone", "moon", "sun", "tree", "bird", "fish"]
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def pairs(file, count=24, seed=0):
    """Write pairs whose anchor has some words of its positive."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(4, 9))
        rows.append({"anchor": " ".join(words[:4]), "positive": " ".join(draw.sample(words, len(words)))})
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Data, a BERT without dropout, and one with."""
    from tiny import tiny_bert

    folder = tmp_path_factory.mktemp("meet")
    tiny_bert(folder / "still", **STILL)
    tiny_bert(folder / "bert")
    pairs(folder / "pairs.jsonl")
    pairs(folder / "held.jsonl", 8, seed=1)
    return folder


def recipe(files, output, batch_size, accumulate=1, model="still", **train):
    settings = {"max_steps": 3, "precision": "float32", "learning_rate": 1e-3, "max_grad_norm": 0.1, **train}
    return Recipe.make(
        {
            "model": {"source": str(files / model)},
            "task": {"name": "embedding", "dimensions": [32, 8]},
            "data": {"train": str(files / "pairs.jsonl"), "validation": str(files / "held.jsonl")},
            "strategy": "full",
            "train": {"batch_size": batch_size, "accumulate": accumulate, **settings},
            "evaluation": {"training_sample": 8},
            "output": str(files / output),
        }
    )


@pytest.fixture(scope="module")
def whole(files):
    return fine_tune(recipe(files, "whole", 8))


def require_same(run, other):
    assert losses(run) == pytest.approx(losses(other), rel=1e-5)
    for key in ("grad_norm", "validation_loss", "training_loss"):
        one, two = ([line[key] for line in x.metrics if key in line] for x in (run, other))
        assert one == pytest.approx(two, rel=1e-4)
        assert one
    first, second = (read_tensors(x.trained / "model.safetensors") for x in (run, other))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-5)


def test_accumulated_micro_batches_equal_one_batch(files, whole):
    require_same(fine_tune(recipe(files, "accumulated", 2, 4)), whole)


@pytest.mark.slow
def test_two_processes_equal_one(files, whole):
    """Each with the whole model, and each with a part of it."""
    for name, parallel in (("two", {}), ("divided", {"parallel": "fsdp"})):
        (files / f"{name}.yaml").write_text(json.dumps(recipe(files, name, 2, 2, **parallel).resolved()))
    together(files, train, str(files / "two.yaml"), str(files / "divided.yaml"))
    for name in ("two", "divided"):
        require_same(load_run(files / name), whole)


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_curve_of_a_whole_one(files):
    """With dropout, of accumulated micro-batches."""
    settings = {"batch_size": 4, "accumulate": 2, "model": "bert", "checkpoint_every": 2}
    one = fine_tune(recipe(files, "one", **settings))
    broken = recipe(files, "broken", **settings)
    interrupt(broken, after=2)
    assert curve(fine_tune(broken, resume=True).path) == curve(one.path)


def test_both_passes_have_the_same_dropout(files, monkeypatch):
    """Vectors of the second pass are those that were compared, and differ from those of another micro-batch."""
    seen = []
    represent = Embedding.represent

    def watched(self, model, batch):
        found = represent(self, model, batch)
        if model.training:
            seen.append((torch.is_grad_enabled(), found["anchor"].detach().clone()))
        return found

    monkeypatch.setattr(Embedding, "represent", watched)
    fine_tune(recipe(files, "dropout", 4, 2, model="bert", max_steps=1))
    (_, one), (_, two), (_, three), (_, four) = seen[-4:]
    assert [grads for grads, _ in seen[-4:]] == [False, False, True, True]
    assert torch.equal(one, three)
    assert torch.equal(two, four)
    assert not torch.equal(one, two)
