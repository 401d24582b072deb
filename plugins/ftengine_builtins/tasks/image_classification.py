"""Classification of images, and regression on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ftengine.api import Batch, Example, Features, LoadedModel, TaskTraits, View, beside
from ftengine.errors import DataError, SourceError
from ftengine_builtins.tasks.labelled import LabelledConfig, LabelledTask
from ftengine_builtins.tasks.pixels import LazyImage, check_image, image_identity, place_of, read_image
from ftengine_builtins.tasks.recognising import recognise_images

if TYPE_CHECKING:
    from torch import Tensor, nn

PROBES = 4
"""Images of the batch that merging compares outputs on."""


class ImageClassificationConfig(LabelledConfig):
    """Options of task image-classification."""

    image: str = Field(
        "image", min_length=1, description="column of the image: a path relative to the data file, or an image's bytes"
    )
    outside_files: bool = Field(False, description="open images outside of the data file's folder too")


class ImageClassification(LabelledTask):
    """Give an image one label, several labels, or a number.

    Data is a folder with a subfolder of images for each label, or rows with an image (a path relative to the
    data file, or bytes) and a label. Images are resized and normalised as the model's own processor says; nothing
    else is done to them unless the recipe names augmenters. Label ids follow the sorted names.
    """

    name = "image-classification"
    traits = TaskTraits(
        example_model="google/vit-base-patch16-224-in21k",
        example_data="images",
        unit="images",
        pipeline_tag="image-classification",
    )
    head = "image-classification"
    modality = "image"
    Config = ImageClassificationConfig

    recognise = staticmethod(recognise_images)

    @property
    def file_columns(self) -> tuple[str, ...]:
        return (self.config.image,)

    def in_folder(self, row: Example, folder: str) -> Example:
        column = self.config.image
        if column not in row:
            return row
        return {**row, column: beside(row[column], folder, inside=not self.config.outside_files)}

    def columns(self) -> dict[str, str | None]:
        return {"image": self.config.image, "label": self.config.label}

    def kind_of(self, examples: Iterable[Example]) -> str:
        """Decide the kind of label; names of image folders are always classes, even "1.5" and "2.0"."""
        return "single" if all(map(self._is_named_by_folder, examples)) else super().kind_of(examples)

    def view(self, row: Example) -> View:
        """Return the image (PIL, upright and in RGB) as input, without text.

        Rows are duplicates if their image files are equal byte for byte, whatever their names.
        """
        value = row.get(self.config.image)
        return View(LazyImage(value, self.config.image), self.named(row), True, (), lambda: image_identity(value))

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        [image] = inputs
        return {**row, self.config.image: image}

    def read(self, example: Example, processor: Any, max_length: int | None) -> Features:
        """Return pixel_values, fp32 (channels, height, width), and the image's name."""
        value = example.get(self.config.image)
        image = read_image(value, self.config.image, _mode(processor))
        shown = f"{place_of(value)} ({image.width} × {image.height})"
        pixels = _pixels(processor, image)
        return Features({"pixel_values": pixels, "shown": shown}, length=1, weight=1, truncated=False)

    def stack(self, features: Sequence[Features], processor: Any) -> Batch:
        """Stack pixel_values to (examples, channels, height, width) (DataError: images are of different sizes)."""
        import torch

        pixels = [example.inputs["pixel_values"] for example in features]
        shapes = sorted({tuple(image.shape) for image in pixels})
        if len(shapes) > 1:
            raise DataError(
                f"the model's processor leaves images at different sizes, such as {shapes[0]} and {shapes[-1]}. "
                "Set a fixed size (size, do_resize, do_center_crop) in its preprocessor_config.json."
            )
        return {"pixel_values": torch.stack(pixels)}

    def raw_outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Pass pixels by the name that transformers uses; to other libraries' models by position."""
        from ftengine.model import widen

        name = getattr(model, "main_input_name", None)
        output = model(**{name: batch["pixel_values"]}) if name else model(batch["pixel_values"])
        return widen(output.logits if hasattr(output, "logits") else output)

    def probe_batch(self, loaded: LoadedModel) -> Batch:
        """Return images of random noise, resized and normalised like any other."""
        import torch
        from PIL import Image

        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(256, (PROBES, 256, 256, 3), generator=generator, dtype=torch.uint8)
        images = [Image.fromarray(x.numpy()).convert(_mode(loaded.processor)) for x in noise]
        return {"pixel_values": torch.stack([_pixels(loaded.processor, image) for image in images])}

    def check_input(self, row: Example) -> None:
        """Refuse a row whose image is missing or of an unsupported format; damage is found when it is decoded."""
        check_image(row.get(self.config.image), self.config.image)

    def _is_named_by_folder(self, example: Example) -> bool:
        label = example.get(self.config.label)
        return isinstance(label, str) and label in Path(place_of(example.get(self.config.image))).parts[:-1]

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Return the image's path and sizes, and its label."""
        inputs = features.inputs
        shape = " × ".join(map(str, inputs["pixel_values"].shape))
        return [(f"{inputs['shown']} as {shape} ", False), (self.label_text(inputs["label"]), True)]


def _mode(processor: Any) -> str:
    """Return PIL's mode for the channels that a processor normalises."""
    mean = getattr(processor, "image_mean", None)
    return "L" if isinstance(mean, (list, tuple)) and len(mean) == 1 else "RGB"


def _pixels(processor: Any, image: Any) -> Tensor:
    """Return one image in the model's form (SourceError: the model came without an image processor)."""
    if not callable(processor) or hasattr(processor, "get_vocab"):
        raise SourceError(
            f"the model came with {type(processor).__name__ if processor is not None else 'no processor'}, and images "
            "need an image processor. Put its preprocessor_config.json into the model's folder; where there is a "
            "tokenizer as well, set model.loader.processor=image."
        )
    return processor(images=image, return_tensors="pt")["pixel_values"][0]
