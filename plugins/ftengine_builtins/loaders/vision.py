"""Image classifiers of libraries that build them by name: what timm and torchvision have in common."""

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
"""What timm and torchvision call the size of images that a model's shapes hang on."""

REFUSED_ARGUMENTS = frozenset(
    {"model_name", "name", "checkpoint_path", "cache_dir", "weights", "weights_backbone", "progress", "num_classes"}
    | {"model_cfg", "features_only", "feature_cfg", "feature_cls", "pruned", "scriptable", "exportable", "no_jit"}
)
"""Arguments that make a library read other files, or build something else than a classifier; so do `pretrained…`."""


class ImageTransform:
    """A library's evaluation transform in the form of an image processor.

    Args:
        transform: from an RGB image of PIL to (3, height, width).
        config: what a reader of the saved model needs: architecture and preprocessing.
    """

    def __init__(self, transform: Callable[[Any], Tensor], config: dict[str, Any]) -> None:
        self.transform, self.config = transform, config
        self.labels: Labels | None = None
        self.arguments: Mapping[str, Any] = {}

    def __call__(self, images: Any, return_tensors: str = "pt") -> dict[str, Tensor]:
        """Return {"pixel_values": (images, 3, height, width)} of one image or several."""
        several = images if isinstance(images, Sequence) else [images]
        return {"pixel_values": torch.stack([self.transform(image) for image in several])}

    def to_dict(self) -> dict[str, Any]:
        """Return what identifies the preprocessing."""
        return self.config

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json: with it, a folder that holds the weights is a model that the loader reads."""
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
            description="of a model given by name: a .safetensors file, a folder with model.safetensors, `library` for "
            "the library's own download, or `random`",
        )
        image_size: int | None = Field(None, ge=8, description="side of the square that images become, in pixels")

    # What a library has to say.

    def architectures(self) -> Sequence[str]:
        """Return the names that can be built."""
        raise NotImplementedError

    def build(self, architecture: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
        """Build a model with random weights; `arguments` are further ones of the library's function."""
        raise NotImplementedError

    def arguments(self, architecture: str) -> dict[str, Any]:
        """Return what has to be said to build the architecture for `image_size`."""
        raise NotImplementedError

    def downloaded(self, architecture: str) -> dict[str, Tensor]:
        """Return the library's own weights, fetched where needed, without running anything that comes with them."""
        raise NotImplementedError

    def transform(self, architecture: str, saved: Mapping[str, Any]) -> ImageTransform:
        """Return the preprocessing of an architecture, or that of a saved config."""
        raise NotImplementedError

    def owns(self, config: Mapping[str, Any]) -> bool:
        """Say whether a folder's config.json is of this library's kind."""
        raise NotImplementedError

    # What follows from it.

    def accepts(self, source: str) -> bool:
        """Accept LIBRARY://NAME, and a folder that such a model was saved to."""
        if source.startswith(self._scheme):
            return True
        try:
            config = json_of_file(Path(source, CONFIG))
        except (OSError, ValueError):
            return False
        return isinstance(config, dict) and self.owns(config)

    def check_source(self, source: str) -> None:
        """Find the library, the architecture and the weights' header."""
        self._named(source)

    def check_head(self, source: str, head: str) -> None:
        """Refuse all heads but one."""
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
            raise SourceError(f"{source!r} classifies images, and it is not said among which labels.")
        processor = self._transform(source, architecture, saved)
        with reading(source):
            names = [str(name) for name in saved.get("label_names") or ()]
            rows = None if self.config.weights == "random" else rows_of(names, labels)
            arguments = self.arguments(architecture) | (saved.get("model_args") or {})
            module = self.build(architecture, len(labels.names), arguments)
        heads = self.heads(module, len(labels.names))
        if not heads:
            raise SourceError(f"{source!r}: cannot tell which layer of {type(module).__name__} gives the logits.")
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
        # What layers do not say of themselves, such as into how many heads attention is divided.
        config = {"architecture": architecture} | {f"model_args.{key}": x for key, x in sorted(arguments.items())}
        return LoadedModel(module, processor, source, request.head, new, labels, {"config": config})

    def heads(self, module: nn.Module, classes: int) -> list[str]:
        """Name the layers that give the logits: the last linear map or convolution, if its outputs are the classes."""
        layers = [(name, x) for name, x in module.named_modules() if isinstance(x, (nn.Linear, nn.Conv2d))]
        return [name for name, layer in layers[-1:] if layer.weight.shape[0] == classes]

    def _check_arguments(self, source: str, arguments: Any) -> None:
        """Refuse arguments of a folder that could do more than shape the model, or contradict the options."""
        if not isinstance(arguments, Mapping):
            raise SourceError(f"{source!r}: model_args in {CONFIG} is {arguments!r}; it must be an object.")
        for name in arguments:
            if name in REFUSED_ARGUMENTS or name.startswith("pretrained"):
                raise SourceError(
                    f"{source!r}: model_args in {CONFIG} has {name!r}, which can make {self.library} read other files "
                    "or build no classifier. Only arguments of the architecture may stand there; take it out."
                )
        size = self.config.image_size
        for name in SIZES:
            if size and name in arguments and arguments[name] not in (size, [size], [size, size]):
                raise SourceError(
                    f"{source!r} is built for images of {name} {arguments[name]}, on which the shapes of its weights "
                    f"hang; model.loader.image_size is {size}. Leave image_size out."
                )

    def _transform(self, source: str, architecture: str, saved: Mapping[str, Any]) -> ImageTransform:
        """Return the preprocessing, tried on one image: not every library looks at its settings before."""
        from PIL import Image

        with reading(source):
            transform = self.transform(architecture, saved)
            transform(Image.new("RGB", (8, 8)))
        return transform

    @property
    def _scheme(self) -> str:
        return f"{self.library}://"

    def _named(self, source: str) -> tuple[str, dict[str, Any], Path | None]:
        """Return a source's architecture, the config.json beside its weights, and those, None without a file of them.

        SourceError: library, architecture or weights are missing, or a file beside them cannot be used.
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
                f"{source!r} names an architecture, not its weights. Write model.loader: {{name: {self.name}, "
                f"weights: …}} with a .safetensors file, `library` for {self.library}'s own download, or `random`."
            )
        if not by_name and chosen is not None:
            raise SourceError(
                f"{source!r} is a folder with its own weights. Leave out model.loader.weights ({chosen!r})."
            )
        if file is not None:
            stored_tensors(file, source)
        return architecture, saved, file

    def _place(self, source: str) -> tuple[Path | None, Path | None]:
        """Return the folder and the file of a source's weights; None where they lie in none, or come from elsewhere."""
        place = self.config.weights if source.startswith(self._scheme) else source
        if place is None or (place != source and place in ("library", "random")):
            return None, None
        folder = Path(place)
        return (folder, folder / WEIGHTS) if folder.is_dir() or place == source else (None, folder)


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], heads: Sequence[str], rows: list[int] | None, source: str
) -> None:
    """Copy a checkpoint's weights and statistics into a model, whose heads already have one output a label.

    Args:
        heads: layers that give the logits.
        rows: the checkpoint's output for each label, or None where its head answers another question and the model's
            random one stays. Anything else that does not fit is an error (SourceError).
    """
    inside = tuple(f"{name}." for name in heads)
    tensors = {key: value for key, value in tensors.items() if rows is not None or not key.startswith(inside)}
    if rows is not None:
        tensors |= {key: tensors[key][rows] for key in tensors if key.startswith(inside)}
    wanted = {k: v for k, v in module.state_dict().items() if rows is not None or not k.startswith(inside)}
    # Old checkpoints do not count batches; the count is of use only to averages that nobody takes.
    lacking = {k for k in wanted.keys() - tensors.keys() if not k.endswith("num_batches_tracked")}
    wrong = lacking | (tensors.keys() - wanted.keys())
    wrong |= {key for key in wanted.keys() & tensors.keys() if wanted[key].shape != tensors[key].shape}
    if wrong:
        some = ", ".join(sorted(wrong)[:3]) + (", …" if len(wrong) > 3 else "")
        raise SourceError(
            f"the weights of {source!r} do not fit {type(module).__name__}: {len(wrong)} tensors are missing, "
            f"unexpected or of another shape ({some}). They are of another architecture, or have other names."
        )
    module.load_state_dict(dict(tensors), strict=False)
