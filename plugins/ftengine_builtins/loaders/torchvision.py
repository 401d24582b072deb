"""Image classifiers of torchvision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ftengine_builtins.loaders.vision import ImageTransform, VisionLoader

SEVERAL_OUTPUTS = frozenset({"googlenet", "inception_v3"})
"""Models with auxiliary logits in training, which tasks do not support; timm has both without them."""


class TorchvisionLoader(VisionLoader):
    """Load an image classifier of torchvision: torchvision://NAME with `weights`, or a folder that `merge` wrote.

    Images are prepared as torchvision does for its own best weights of the architecture.
    """

    name = "torchvision"
    library = "torchvision"

    def owns(self, config: Mapping[str, Any]) -> bool:
        return config.get("library") == self.library

    def architectures(self) -> Sequence[str]:
        from torchvision import models

        return [name for name in models.list_models(module=models) if name not in SEVERAL_OUTPUTS]

    def build(self, architecture: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
        from torchvision import models

        return models.get_model(architecture, weights=None, num_classes=classes, **arguments)

    def arguments(self, architecture: str) -> dict[str, Any]:
        fixed = architecture.startswith("vit_")  # the size is part of the weights' shapes
        return {"image_size": self.config.image_size} if fixed and self.config.image_size else {}

    def downloaded(self, architecture: str) -> dict[str, Tensor]:
        from torchvision import models

        weights: Any = models.get_model_weights(architecture).DEFAULT
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)

    def transform(self, architecture: str, saved: Mapping[str, Any]) -> ImageTransform:
        from torchvision import models
        from torchvision.transforms import InterpolationMode

        weights: Any = models.get_model_weights(architecture).DEFAULT
        preset = weights.transforms()
        preprocessing = {
            "crop_size": preset.crop_size,
            "resize_size": preset.resize_size,
            "mean": preset.mean,
            "std": preset.std,
            "interpolation": preset.interpolation.value,
        }
        preprocessing |= saved.get("preprocessing") or {}
        if self.config.image_size:
            preprocessing |= {"crop_size": [self.config.image_size], "resize_size": [self.config.image_size]}
        settings = {**preprocessing, "interpolation": InterpolationMode(preprocessing["interpolation"])}
        settings |= {key: preprocessing[key][0] for key in ("crop_size", "resize_size")}
        config = {"library": self.library, "architecture": architecture, "preprocessing": preprocessing}
        return ImageTransform(type(preset)(**settings), config)
