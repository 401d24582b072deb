"""Mixup and CutMix against values computed by hand."""

import random

import pytest
import torch
from expected import raises

from ftengine.api import Labels
from ftengine.errors import InputError, RecipeError
from ftengine_builtins.augmenters.mixing import CutMix, Mixup, box_side
from ftengine_builtins.tasks.image_classification import ImageClassification, ImageClassificationConfig


class Drawn:
    """Random numbers that are known; stands for the seeded generator of a batch."""

    def __init__(self, share, order, *numbers):
        self.share, self.order, self.numbers = share, order, list(numbers)

    def sample(self, population, k):
        assert list(population) == list(range(k))
        return self.order

    def betavariate(self, a, b):
        self.parameters = a, b
        return self.share

    def random(self):
        return self.numbers.pop(0)


@pytest.fixture
def task():
    bound = ImageClassification()
    bound.labels = Labels("single", ("a", "b", "c"))
    return bound


def mixed(augmenter, task, batch, drawn, monkeypatch):
    augmenter.check_mix(task)
    monkeypatch.setattr("ftengine_builtins.augmenters.mixing.random.Random", lambda seed: drawn)
    rng = type("Seeds", (), {"random": lambda self: 0.0, "randrange": lambda self, n: 0})()
    return augmenter.mix(batch, task, rng)


def test_mixup_is_the_papers_formula(task, monkeypatch):
    pixels = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]).reshape(3, 1, 1, 2)
    drawn = Drawn(0.75, [1, 2, 0])
    batch = {"pixel_values": pixels, "labels": torch.tensor([0, 2, 2])}
    result = mixed(Mixup(), task, batch, drawn, monkeypatch)
    # λ x₁ + (1 - λ) x₂: 0.75·1 + 0.25·10 = 3.25, …
    assert result["pixel_values"].reshape(3, 2).tolist() == [[3.25, 6.5], [32.5, 65.0], [75.25, 150.5]]
    assert result["labels"].tolist() == [[0.75, 0, 0.25], [0, 0, 1], [0.25, 0, 0.75]]
    assert result["labels"].dtype == torch.float32
    assert drawn.parameters == (0.2, 0.2)
    assert batch["labels"].tolist() == [0, 2, 2]
    assert pixels[0, 0, 0, 0] == 1


def test_mixup_blends_several_labels_and_numbers(task, monkeypatch):
    for labels, kind in ([[1.0, 0, 0], [1, 1, 0]], "multi"), ([[2.0], [4.0]], "regression"):
        task.labels = Labels(kind, ("a", "b", "c")[: len(labels[0])])
        batch = {"pixel_values": torch.zeros(2, 1, 1, 1), "labels": torch.tensor(labels)}
        result = mixed(Mixup(), task, batch, Drawn(0.75, [1, 0]), monkeypatch)
        assert result["labels"].tolist() == ([[1, 0.25, 0], [1, 0.75, 0]] if kind == "multi" else [[2.5], [3.5]])


def test_cutmix_is_the_papers_formula(task, monkeypatch):
    pixels = torch.stack([torch.full((1, 4, 8), 0.0), torch.full((1, 4, 8), 9.0)])
    batch = {"pixel_values": pixels, "labels": torch.tensor([0, 1])}
    # λ = 0.75: half of each side, 2 × 4 pixels, around the middle (2, 4)
    result = mixed(CutMix(), task, batch, Drawn(0.75, [1, 0], 0.5, 0.5), monkeypatch)
    expected = torch.zeros(4, 8)
    expected[1:3, 2:6] = 9
    assert torch.equal(result["pixel_values"][0, 0], expected)
    assert torch.equal(result["pixel_values"][1, 0], 9 - expected)
    assert result["labels"].tolist() == [[0.75, 0.25, 0], [0.25, 0.75, 0]]
    assert pixels[0].sum() == 0


def test_a_box_that_reaches_out_is_cut_and_the_label_follows_what_is_left(task, monkeypatch):
    batch = {"pixel_values": torch.stack([torch.zeros(1, 4, 8), torch.ones(1, 4, 8)]), "labels": torch.tensor([0, 1])}
    result = mixed(CutMix(), task, batch, Drawn(0.75, [1, 0], 0.0, 0.99), monkeypatch)
    inside = result["pixel_values"][0].sum().item()
    assert inside == 1 * 3  # rows 0 to 1, columns 5 to 8
    assert result["labels"][0].tolist() == [1 - 3 / 32, 3 / 32, 0]
    assert box_side(8, 1.0, 0.5) == (4, 4)
    assert box_side(8, 0.0, 0.5) == (0, 8)


@pytest.mark.parametrize("kind", [Mixup, CutMix])
def test_mixing_is_a_function_of_its_numbers_and_labels_are_shares(kind, task):
    batch = {"pixel_values": torch.rand(8, 3, 6, 6), "labels": torch.arange(8) % 3}
    augmenter = kind()
    first, again, other = (augmenter.mix(batch, task, random.Random(seed)) for seed in (1, 1, 2))
    assert first["pixel_values"].equal(again["pixel_values"])
    assert not first["pixel_values"].equal(other["pixel_values"])
    assert torch.allclose(first["labels"].sum(1), torch.ones(8))
    assert not first["pixel_values"].equal(batch["pixel_values"])


def test_labels_are_soft_also_in_batches_that_are_not_mixed_or_mixed_before(task):
    batch = {"pixel_values": torch.rand(2, 3, 4, 4), "labels": torch.tensor([2, 0])}
    augmenter = Mixup(Mixup.Config(probability=0))
    result = augmenter.mix(batch, task, random.Random(0))
    assert result["labels"].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert result["pixel_values"] is batch["pixel_values"]
    cut = CutMix(CutMix.Config())
    assert torch.allclose(cut.mix(result, task, random.Random(0))["labels"].sum(1), torch.ones(2))


def test_numbers_are_not_mixed_by_area():
    task = ImageClassification(ImageClassificationConfig(kind="regression"))
    task.labels = Labels("regression", ("label",))
    Mixup().check_mix(task)
    with raises(RecipeError, "cutmix"):
        CutMix().check_mix(task)


def test_a_batch_without_images_is_refused(task):
    augmenter = Mixup()
    with raises(InputError, "images"):
        augmenter.mix({"input_ids": torch.zeros(2, 3), "labels": torch.tensor([0, 1])}, task, random.Random(0))
