"""Image classifiers of timm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ftengine_builtins.loaders.vision import ImageTransform, VisionLoader

PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


class TimmLoader(VisionLoader):
    """Load an image classifier of timm: timm://NAME with `weights`, or a folder in timm's format.

    NAME may include a tag of timm's weights (resnet18.a1_in1k), which also decides the preprocessing. A folder holds
    config.json and model.safetensors, as timm's models on the hub do and as `ftengine merge` writes them; timm reads it
    as `local-dir:FOLDER`.
    """

    name = "timm"
    library = "timm"

    def owns(self, config: Mapping[str, Any]) -> bool:
        return "architecture" in config and "pretrained_cfg" in config

    def architectures(self) -> Sequence[str]:
        import timm

        return [*timm.list_models(), *timm.list_pretrained()]

    def build(self, architecture: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
        import timm

        return timm.create_model(architecture, pretrained=False, num_classes=classes, **arguments)

    def arguments(self, architecture: str) -> dict[str, Any]:
        import timm

        fixed = timm.get_pretrained_cfg(architecture).fixed_input_size  # the size is part of the weights' shapes
        return {"img_size": self.config.image_size} if fixed and self.config.image_size else {}

    def downloaded(self, architecture: str) -> dict[str, Tensor]:
        import timm

        return timm.create_model(architecture, pretrained=True).state_dict()  # reads weights only

    def heads(self, module: nn.Module, classes: int) -> list[str]:
        """Return the names of the classifiers; distilled models have two."""
        classifier: Any = module.get_classifier()
        layers = classifier if isinstance(classifier, tuple) else (classifier,)
        return [name for name, layer in module.named_modules() if any(layer is head for head in layers)]

    def transform(self, architecture: str, saved: Mapping[str, Any]) -> ImageTransform:
        import timm
        from timm.data import create_transform, resolve_data_config

        own = saved.get("pretrained_cfg") or timm.get_pretrained_cfg(architecture).to_dict()
        data = resolve_data_config(pretrained_cfg=own, model=None, verbose=False)
        if self.config.image_size:
            data |= {"input_size": (3, self.config.image_size, self.config.image_size), "crop_pct": 1.0}
        preprocessing = {key: data[key] for key in PREPROCESSING}
        config = {"architecture": architecture.partition(".")[0], "pretrained_cfg": preprocessing}
        return ImageTransform(create_transform(**data, is_training=False), config)
