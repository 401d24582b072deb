"""Augmenters of images, by torchvision's transforms on PIL images."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, field_validator

from ftengine.api import AugmenterConfig, InputAugmenter, RandomSource
from ftengine.errors import RecipeError
from ftengine_builtins.augmenters.partial_config import PartialConfig


class ImageAugmenter(InputAugmenter):
    """Changes images by a torchvision transform that a subclass makes."""

    modality = "image"

    def check_options(self) -> None:
        """Raise RecipeError if torchvision is not installed."""
        if find_spec("torchvision") is None:
            raise RecipeError(f"augmenter {self.name!r} needs torchvision. Install it: pip install 'ftengine[vision]'.")

    def transform(self, v2: Any, image: Any) -> Callable[[Any], Any]:
        """Return a transform of `v2` (torchvision.transforms.v2) that draws from torch's generator."""
        raise NotImplementedError

    def change(self, value: Any, rng: RandomSource) -> Any:
        from torchvision.transforms import v2

        from ftengine.model import seeded

        with seeded(rng.randrange(2**63)):
            return self.transform(v2, value)(value)


class Flip(ImageAugmenter):
    """Flip images.

    Do not use it if left and right (or top and bottom) distinguish labels, as for letters or arrows.
    """

    name = "flip"

    class Config(PartialConfig):
        direction: Literal["horizontal", "vertical", "both"] = Field(
            "horizontal", description="flip left and right, top and bottom, or at random one or both"
        )

    def transform(self, v2: Any, image: Any) -> Callable[[Any], Any]:
        import torch

        directions = {"horizontal": 1, "vertical": 2}.get(self.config.direction) or int(torch.randint(1, 4, ()))
        return v2.Compose([v2.RandomHorizontalFlip(directions & 1), v2.RandomVerticalFlip(directions >> 1)])


class Crop(ImageAugmenter):
    """Crop images at random and resize the part to the size of the whole (RandomResizedCrop).

    The part has `scale` of the area and `ratio` of width to height, both drawn at random.
    """

    name = "crop"
    paper = "Szegedy et al. 2015, arXiv:1409.4842"

    class Config(AugmenterConfig):
        scale: list[Annotated[float, Field(gt=0, le=1)]] = Field(
            [0.5, 1.0],
            min_length=2,
            max_length=2,
            description="least and greatest share of the image's area that is kept",
        )
        ratio: list[PositiveFloat] = Field(
            [0.75, 1.333],
            min_length=2,
            max_length=2,
            description="least and greatest ratio of width to height of the part",
        )

        @field_validator("scale", "ratio")
        @classmethod
        def _in_order(cls, pair: list[float]) -> list[float]:
            if pair[0] > pair[1]:
                raise ValueError("give the smaller number first")
            return pair

    def transform(self, v2: Any, image: Any) -> Callable[[Any], Any]:
        size = (image.height, image.width)
        return v2.RandomResizedCrop(size, scale=self.config.scale, ratio=self.config.ratio)


class Color(ImageAugmenter):
    """Change brightness, contrast, saturation and hue of images at random (ColorJitter)."""

    name = "color"

    class Config(AugmenterConfig):
        brightness: float = Field(0.2, ge=0, description="multiply brightness by 1 - this (at least 0) to 1 + this")
        contrast: float = Field(0.2, ge=0, description="the same for contrast")
        saturation: float = Field(0.2, ge=0, description="the same for saturation")
        hue: float = Field(0.05, ge=0, le=0.5, description="largest shift of the hue either way; 0.5 is its opposite")

    def transform(self, v2: Any, image: Any) -> Callable[[Any], Any]:
        config = self.config
        return v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)


class RandAugment(ImageAugmenter):
    """Change images by a few operations at random, all of one strength (RandAugment).

    The operations are those of the paper: shear, shift, turn, brightness, colour, contrast, sharpness, posterise,
    solarise, equalise and the like.
    """

    name = "rand-augment"
    paper = "Cubuk et al. 2020, arXiv:1909.13719"

    class Config(AugmenterConfig):
        operations: int = Field(2, ge=1, description="operations on each image, one after the other")
        magnitude: int = Field(9, ge=0, le=30, description="strength of the operations, from 0 to 30")

    def transform(self, v2: Any, image: Any) -> Callable[[Any], Any]:
        return v2.RandAugment(num_ops=self.config.operations, magnitude=self.config.magnitude)


class TrivialAugment(ImageAugmenter):
    """Change images by one operation at random, of random strength (TrivialAugment, wide).

    There is nothing to tune, which makes it a good first choice.
    """

    name = "trivial-augment"
    paper = "Müller and Hutter 2021, arXiv:2103.10158"

    def transform(self, v2: Any, image: Any) -> Callable[[Any], Any]:
        return v2.TrivialAugmentWide()
