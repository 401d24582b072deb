"""Common base of the loaders of timm and torchvision, which build image classifiers by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from ftengine import api
from ftengine.api import Labels, LoadedModel, LoadRequest, ModelLoader
from ftengine.errors import SourceError, did_you_mean, json_of_file
from ftengine_builtins.loaders.heads import rows_of
from ftengine_builtins.loaders.pretrained import read_json, refuse_adapter, stored_tensors
from ftengine_builtins.loaders.quiet import reading

WEIGHTS, CONFIG = "model.safetensors", "config.json"
HEAD = "image-classification"

SIZES = ("img_size", "image_size")
"""timm's and torchvision's arguments for an image size that decides shapes of weights."""

REFUSED_ARGUMENTS = frozenset(
    {"model_name", "name", "checkpoint_path", "cache_dir", "weights", "weights_backbone", "progress", "num_classes"}
    | {"model_cfg", "features_only", "feature_cfg", "feature_cls", "pruned", "scriptable", "exportable", "no_jit"}
)
"""Arguments with which a library reads other files or builds no classifier; `pretrained…` are refused too."""


class ImageTransform:
    """A library's evaluation transform in the form of an image processor.

    Args:
        transform: maps an RGB image of PIL to (3, height, width).
        config: architecture and preprocessing, saved with the model.
    """

    def __init__(self, transform: Callable[[Any], Tensor], config: dict[str, Any]) -> None:
        self.transform, self.config = transform, config
        self.labels: Labels | None = None
        self.arguments: Mapping[str, Any] = {}

    def __call__(self, images: Any, return_tensors: str = "pt") -> dict[str, Tensor]:
        """Return {"pixel_values": (images, 3, height, width)} for one image or several."""
        several = images if isinstance(images, Sequence) else [images]
        return {"pixel_values": torch.stack([self.transform(image) for image in several])}

    def to_dict(self) -> dict[str, Any]:
        """Return the architecture and preprocessing."""
        return self.config

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, with which the loader can read a folder of weights."""
        model = {"model_args": self.arguments} if self.arguments else {}
        if self.labels is not None:
            model |= {"num_classes": len(self.labels.names), "label_names": self.labels.names}
        Path(folder, CONFIG).write_text(json.dumps({**self.config, **model}, indent=2) + "\n", encoding="utf-8")


class VisionLoader(ModelLoader):
    """Builds an image classifier by name and fills it from safetensors."""

    library: ClassVar[str]
    """The package that builds the models; also the source's scheme."""

    class Config(api.Config):
        weights: str | None = Field(
            None,
            min_length=1,
            description="weights for a model given by name: a .safetensors file, a folder with "
            "model.safetensors, `library` for the library's own download, or `random`",
        )
        image_size: int | None = Field(
            None, ge=8, description="side of the square that images become, in pixels; null: the model's own"
        )

    # Methods that a library's loader implements.

    def architectures(self) -> Sequence[str]:
        """Return the names that can be built."""
        raise NotImplementedError

    def build(self, architecture: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
        """Build a model with random weights; `arguments` are passed to the library's function."""
        raise NotImplementedError

    def arguments(self, architecture: str) -> dict[str, Any]:
        """Return the arguments that build the architecture for `image_size`."""
        raise NotImplementedError

    def downloaded(self, architecture: str) -> dict[str, Tensor]:
        """Return the library's own weights, downloaded if needed, without running code."""
        raise NotImplementedError

    def transform(self, architecture: str, saved: Mapping[str, Any]) -> ImageTransform:
        """Return the preprocessing of a saved config, or of the architecture."""
        raise NotImplementedError

    def owns(self, config: Mapping[str, Any]) -> bool:
        """Return whether a folder's config.json is in this library's format."""
        raise NotImplementedError

    # Methods of all these loaders.

    def accepts(self, source: str) -> bool:
        """Accept LIBRARY://NAME, and a folder with a saved model of the library."""
        if source.startswith(self._scheme):
            return True
        try:
            config = json_of_file(Path(source, CONFIG))
        except (OSError, ValueError):
            return False
        return isinstance(config, dict) and self.owns(config)

    def check_source(self, source: str) -> None:
        """Check the library, the architecture and the header of the weights."""
        self._named(source)

    def check_head(self, source: str, head: str) -> None:
        """Refuse heads other than image-classification."""
        if head != HEAD:
            raise SourceError(f"{source!r} classifies images; the task needs {head!r}. Use task {HEAD}.")

    def load_processor(self, source: str) -> ImageTransform:
        architecture, saved, _ = self._named(source)
        return self._transform(source, architecture, saved)

    def load_skeleton(self, request: LoadRequest) -> LoadedModel:
        return self.load(request, skeleton=True)

    def load(self, request: LoadRequest, *, skeleton: bool = False) -> LoadedModel:
        source, labels = request.source, request.labels
        architecture, saved, file = self._named(source)
        self.check_head(source, request.head)
        if labels is None:
            raise SourceError(f"{source!r} classifies images, but the task has no labels. Use task {HEAD}.")
        processor = self._transform(source, architecture, saved)
        with reading(source):
            names = [str(name) for name in saved.get("label_names") or ()]
            rows = None if self.config.weights == "random" else rows_of(names, labels)
            arguments = self.arguments(architecture) | (saved.get("model_args") or {})
            module = self.build(architecture, len(labels.names), arguments)
        heads = self.heads(module, len(labels.names))
        if not heads:
            raise SourceError(f"{source!r}: cannot tell which layer of {type(module).__name__} computes the logits.")
        if skeleton:
            module.to("meta")
        elif self.config.weights != "random":
            with reading(source):
                tensors = self.downloaded(architecture) if file is None else load_file(file)
            fill(module, tensors, heads, rows, source)
        if request.dtype != "auto":
            for parameter in module.parameters():
                parameter.data = parameter.data.to(getattr(torch, request.dtype))
        processor.labels, processor.arguments = labels, arguments
        new = tuple(sorted(heads)) if rows is None else ()
        # Facts that the shapes of weights do not show, such as the number of attention heads.
        config = {"architecture": architecture} | {f"model_args.{key}": x for key, x in sorted(arguments.items())}
        return LoadedModel(module, processor, source, request.head, new, labels, {"config": config})

    def heads(self, module: nn.Module, classes: int) -> list[str]:
        """Return the layers of the logits: the last linear layer or convolution, if it has one output per class."""
        layers = [(name, x) for name, x in module.named_modules() if isinstance(x, (nn.Linear, nn.Conv2d))]
        return [name for name, layer in layers[-1:] if layer.weight.shape[0] == classes]

    def _check_arguments(self, source: str, arguments: Any) -> None:
        """Refuse a folder's arguments that do more than set shapes, or that contradict the options."""
        if not isinstance(arguments, Mapping):
            raise SourceError(f"{source!r}: model_args in {CONFIG} is {arguments!r}; it must be an object.")
        for name in arguments:
            if name in REFUSED_ARGUMENTS or name.startswith("pretrained"):
                raise SourceError(
                    f"{source!r}: model_args in {CONFIG} has {name!r}, which can make {self.library} read other files "
                    "or build no classifier. Only arguments of the architecture are allowed; remove it."
                )
        size = self.config.image_size
        for name in SIZES:
            if size and name in arguments and arguments[name] not in (size, [size], [size, size]):
                raise SourceError(
                    f"{source!r} is built for images of {name} {arguments[name]}, which decides the shapes of its "
                    f"weights, but model.loader.image_size is {size}. Remove image_size."
                )

    def _transform(self, source: str, architecture: str, saved: Mapping[str, Any]) -> ImageTransform:
        """Return the preprocessing after a test on one image, as some libraries check settings only then."""
        from PIL import Image

        with reading(source):
            transform = self.transform(architecture, saved)
            transform(Image.new("RGB", (8, 8)))
        return transform

    @property
    def _scheme(self) -> str:
        return f"{self.library}://"

    def _named(self, source: str) -> tuple[str, dict[str, Any], Path | None]:
        """Return a source's architecture, the config.json beside its weights, and the weights' file (or None).

        SourceError: library, architecture or weights are missing, or a file cannot be used.
        """
        if find_spec(self.library) is None:
            raise SourceError(f"{source!r} needs {self.library}, which is not installed: pip install {self.library}.")
        by_name, chosen, saved = source.startswith(self._scheme), self.config.weights, {}
        folder, file = self._place(source)
        if folder is not None:
            refuse_adapter(folder, source)
            saved = read_json(folder / CONFIG, source) if (folder / CONFIG).is_file() else {}
        architecture = source.removeprefix(self._scheme) if by_name else str(saved.get("architecture"))
        self._check_arguments(source, saved.get("model_args") or {})
        if architecture not in self.architectures():
            near = did_you_mean(architecture, self.architectures())
            raise SourceError(f"{source!r}: {self.library} has no model {architecture!r}.{near}")
        if by_name and chosen is None:
            raise SourceError(
                f"{source!r} is an architecture without weights. Write model.loader: {{name: {self.name}, "
                f"weights: …}} with a .safetensors file, `library` for {self.library}'s own download, or `random`."
            )
        if not by_name and chosen is not None:
            raise SourceError(f"{source!r} is a folder with its own weights. Remove model.loader.weights ({chosen!r}).")
        if file is not None:
            stored_tensors(file, source)
        return architecture, saved, file

    def _place(self, source: str) -> tuple[Path | None, Path | None]:
        """Return the folder and the file of a source's weights; None for what does not exist."""
        place = self.config.weights if source.startswith(self._scheme) else source
        if place is None or (place != source and place in ("library", "random")):
            return None, None
        folder = Path(place)
        return (folder, folder / WEIGHTS) if folder.is_dir() or place == source else (None, folder)


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], heads: Sequence[str], rows: list[int] | None, source: str
) -> None:
    """Copy a checkpoint's weights and statistics into a model, whose heads have one output per label.

    Args:
        heads: layers of the logits.
        rows: the checkpoint's output index for each label; None keeps the model's random head.

    Raises:
        SourceError: the weights do not fit the model.
    """
    inside = tuple(f"{name}." for name in heads)
    tensors = {key: value for key, value in tensors.items() if rows is not None or not key.startswith(inside)}
    if rows is not None:
        tensors |= {key: tensors[key][rows] for key in tensors if key.startswith(inside)}
    expected = {k: v for k, v in module.state_dict().items() if rows is not None or not k.startswith(inside)}
    # Old checkpoints lack this count, which only cumulative averages use.
    lacking = {k for k in expected.keys() - tensors.keys() if not k.endswith("num_batches_tracked")}
    wrong = lacking | (tensors.keys() - expected.keys())
    wrong |= {key for key in expected.keys() & tensors.keys() if expected[key].shape != tensors[key].shape}
    if wrong:
        some = ", ".join(sorted(wrong)[:3]) + (", …" if len(wrong) > 3 else "")
        raise SourceError(
            f"the weights of {source!r} do not fit {type(module).__name__}: {len(wrong)} tensors are missing, "
            f"unexpected or of another shape ({some}). They belong to another architecture, or have "
            "other names. Choose other weights."
        )
    module.load_state_dict(dict(tensors), strict=False)
