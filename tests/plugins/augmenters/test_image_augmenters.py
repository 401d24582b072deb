"""Changes of images: what each may do, the same for the same numbers, and no trace in torch's own."""

import random

import numpy as np
import pytest
import torch
from expected import raises
from PIL import Image
from pydantic import ValidationError

from ftengine_builtins.augmenters.images import (
    Color,
    Crop,
    Flip,
    ImageAugmenter,
    RandAugment,
    TrivialAugment,
)
from ftengine_builtins.tasks.image_classification import ImageClassification

ALL = (Flip, Crop, Color, RandAugment, TrivialAugment)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8))


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ALL)
def test_the_same_numbers_give_the_same_image_and_torchs_generator_stays(kind, image):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (kind().change(image, random.Random(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert np.array_equal(pixels(first), pixels(again))
    assert np.array_equal(pixels(first), pixels(kind().change(image, random.Random(3))))
    assert (first.size, first.mode) == (image.size, "RGB")
    if kind is not Flip:
        assert len({kind().change(image, random.Random(i)).tobytes() for i in range(12)}) > 4


def test_the_state_comes_back_also_after_an_error(image):
    class Failing(ImageAugmenter):
        def transform(self, v2, image):
            torch.rand(3)
            raise ValueError("no")

    before = torch.get_rng_state()
    with raises(ValueError, "no"):
        Failing().change(image, random.Random(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("direction", "ways"),
    [("horizontal", {(1, -1)}), ("vertical", {(-1, 1)}), ("both", {(1, -1), (-1, 1), (-1, -1)})],
)
def test_images_are_flipped_the_ways_asked_for(direction, ways, image):
    flip = Flip(Flip.Config(direction=direction))
    found = {flip.change(image, random.Random(i)).tobytes() for i in range(40)}
    assert found == {pixels(image)[::y, ::x].astype("uint8").tobytes() for y, x in ways}


def test_a_crop_is_as_large_as_asked_for():
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    crop = Crop(Crop.Config(scale=[0.25, 0.25], ratio=[1, 1]))
    for seed in range(10):
        row = pixels(crop.change(Image.fromarray(ramp.copy()), random.Random(seed)))[0, :, 0]
        assert abs(row[-1] - row[0] - 127) <= 2  # half of the width
    with pytest.raises(ValidationError):
        Crop.Config(scale=[0.9, 0.5])
    with raises(ValidationError, "equal to 1"):
        Crop.Config(scale=[0.5, 2])


def test_an_image_in_a_row_is_replaced_and_its_label_is_not(image):
    task = ImageClassification()
    task.labels = task.learn_labels({"train": [{"image": "x", "label": "a"}, {"image": "y", "label": "b"}]})
    flip = Flip(Flip.Config(probability=1))
    row = {"image": image, "label": "a"}
    (changed,) = flip.augment(row, task, random.Random(0))
    assert changed["label"] == "a"
    assert row["image"] is image
    assert np.array_equal(pixels(changed["image"]), pixels(image)[:, ::-1])
