"""Augmenters that mix the images of a batch, and their labels."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pydantic import Field

from ftengine import api
from ftengine.api import Augmenter, Batch, RandomSource, Task
from ftengine.errors import InputError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor


class Mixing(Augmenter):
    """Mixes the images of a batch with those of the same batch in another order."""

    modality = "image"

    class Config(api.Config):
        probability: float = Field(1.0, ge=0, le=1, description="share of batches that are mixed")
        alpha: float = Field(0.2, gt=0, description="both parameters of the Beta distribution of an image's share")

    def check_mix(self, task: Task) -> None:
        """Raise RecipeError if the task has no labels to mix."""
        if task.labels is None:
            raise RecipeError(
                f"augmenter {self.name!r} mixes labels, but task {task.name!r} has none. Remove it from the recipe."
            )

    def mix(self, batch: Batch, task: Task, rng: RandomSource) -> Batch:
        """Return the batch with every image and its label mixed with another's.

        Labels of one class an example become (examples, classes) fp32 that sum to 1, even if the batch is not mixed.
        """
        import torch

        labels = batch["labels"]
        if not labels.is_floating_point():
            labels = torch.nn.functional.one_hot(labels, len(task.labels.names)).float()
        name, pixels = self._images(batch)
        if rng.random() >= self.config.probability:
            return {**batch, "labels": labels}
        drawn = random.Random(rng.randrange(2**63))  # has distributions that `rng` may lack
        partners = drawn.sample(range(len(pixels)), len(pixels))
        share = drawn.betavariate(self.config.alpha, self.config.alpha)
        mixed, share = self.mixed(pixels, partners, share, drawn)
        return {**batch, name: mixed, "labels": share * labels + (1 - share) * labels[partners]}

    def mixed(self, pixels: Tensor, partners: list[int], share: float, rng: random.Random) -> tuple[Tensor, float]:
        """Return the mixed images, and the actual share of each image's own pixels (close to `share`, 0 to 1).

        Args:
            pixels: (examples, channels, height, width).
            partners: for each example, the index of the one that it is mixed with.
        """
        raise NotImplementedError

    def _images(self, batch: Batch) -> tuple[str, Tensor]:
        """Return the key and the tensor of a batch's images (InputError: there are none)."""
        for key, value in batch.items():
            if key != "labels" and getattr(value, "ndim", 0) == 4 and value.is_floating_point():
                return key, value
        raise InputError(
            f"augmenter {self.name!r} finds no images (examples, channels, height, width) in the batch, only "
            f"{', '.join(map(repr, batch))}. Remove it from the recipe."
        )


class Mixup(Mixing):
    """Blend every image of a batch, and its label, with another of the batch.

    x = λ x₁ + (1 - λ) x₂ and y = λ y₁ + (1 - λ) y₂ with λ ~ Beta(alpha, alpha), one λ for a batch. Numbers (regression)
    are blended like labels.
    """

    name = "mixup"
    paper = "Zhang et al. 2018, arXiv:1710.09412"

    def mixed(self, pixels: Tensor, partners: list[int], share: float, rng: random.Random) -> tuple[Tensor, float]:
        return share * pixels + (1 - share) * pixels[partners], share


class CutMix(Mixing):
    """Put a box of another image of the batch into every image, and its label with it by area.

    The box has the image's proportions, √(1 - λ) of its sides with λ ~ Beta(alpha, alpha), and a random centre. The
    part outside of the image is cut off, and the label's share is that of the remaining area.
    """

    name = "cutmix"
    paper = "Yun et al. 2019, arXiv:1905.04899"

    class Config(Mixing.Config):
        alpha: float = Field(1.0, gt=0, description="both parameters of the Beta distribution of an image's share")

    def check_mix(self, task: Task) -> None:
        """Raise RecipeError if the task has no labels, or is a regression, as numbers cannot be mixed by area."""
        super().check_mix(task)
        if task.labels.kind == "regression":
            raise RecipeError(
                f"augmenter {self.name!r} mixes labels by area, which is not defined for numbers (regression). "
                "Remove it from the recipe, or use mixup."
            )

    def mixed(self, pixels: Tensor, partners: list[int], share: float, rng: random.Random) -> tuple[Tensor, float]:
        height, width = pixels.shape[2:]
        top, bottom = box_side(height, share, rng.random())
        left, right = box_side(width, share, rng.random())
        mixed = pixels.clone()
        mixed[:, :, top:bottom, left:right] = pixels[partners][:, :, top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def box_side(size: int, share: float, middle: float) -> tuple[int, int]:
    """Return start and end of a box with √(1 - share) of a side; `middle` is a fraction of the side."""
    length = int(size * (1 - share) ** 0.5)
    at = int(middle * size)
    return max(0, at - length // 2), min(size, at + length // 2)
