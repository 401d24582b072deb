"""Full tuning: every parameter trains, and the result is a model of its own."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ftengine.api import LoadedModel, Strategy
from ftengine.errors import BaseMismatch, RecipeError, RunError
from ftengine.parameters import copy_into, save_model
from ftengine_builtins.loaders.quiet import cause, quiet

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


class Full(Strategy):
    """Train every parameter; what the architecture itself holds fixed (sinusoidal positions) stays fixed."""

    name = "full"

    def prepare(self, loaded: LoadedModel) -> None:
        for name, parameter in loaded.module.named_parameters():
            if not parameter.is_floating_point() or parameter.itemsize < 2 or _is_quantized(loaded.module):
                raise RecipeError(
                    f"strategy full needs float weights, but {name!r} holds {str(parameter.dtype)[6:]} in a quantised "
                    "model. Load the base dequantised (model.dtype), or tune it with a parameter-efficient strategy."
                )

    def save(self, loaded: LoadedModel, directory: Path) -> None:
        """Write a transformers folder with the processor, or `trained.safetensors` for a plain torch module."""
        if not hasattr(loaded.module, "save_pretrained"):
            super().save(loaded, directory)
            return
        save_model(loaded.module, loaded.processor, directory)

    def load(self, loaded: LoadedModel, directory: Path) -> None:
        """Read what `save` wrote; for a transformers folder, as transformers itself reads it."""
        if not hasattr(loaded.module, "save_pretrained"):
            super().load(loaded, directory)
            return
        if not any((Path(directory) / name).exists() for name in WEIGHT_FILES):
            raise RunError(
                f"no {WEIGHT_FILES[0]} in {str(directory)!r}; only safetensors are read. "
                "Convert other weights with save_pretrained where you trust them."
            )
        # transformers undoes what it did to the names on saving; shards and ties are its business too.
        try:
            with quiet():
                trained, info = type(loaded.module).from_pretrained(
                    directory, dtype="auto", use_safetensors=True, local_files_only=True, output_loading_info=True
                )
        except MemoryError:
            raise
        # transformers answers damaged files with errors of every class; each means that this folder is unusable.
        except Exception as error:
            raise RunError(f"cannot read the model in {str(directory)!r}: {cause(error)}") from error
        wrong = sorted({*info["missing_keys"], *info["unexpected_keys"]})
        if wrong:
            raise BaseMismatch(
                f"{str(directory)!r} does not fit {type(loaded.module).__name__}: {len(info['missing_keys'])} keys "
                f"missing, {len(info['unexpected_keys'])} unexpected ({', '.join(wrong[:3])})."
            )
        copy_into(loaded.module.state_dict(), trained.state_dict(), str(directory))

    def merge(self, loaded: LoadedModel) -> None:
        """Nothing to do: the base weights are the trained ones."""


def _is_quantized(module: nn.Module) -> bool:
    return getattr(module, "hf_quantizer", None) is not None
