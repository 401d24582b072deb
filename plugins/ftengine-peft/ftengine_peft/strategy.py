"""The base class of the strategies: PEFT adds its modules in place, and ftengine trains their parameters."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import peft
import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from torch import nn

from ftengine import api
from ftengine.errors import BaseMismatch, NotMergeable, RecipeError
from ftengine.model import copy_into, decayed, default_param_groups, matching, read_tensors, trainable
from ftengine_peft.files import WEIGHTS_FILE, adapter_tensors, as_stored, require_same, whole_tensors, write
from ftengine_peft.methods import NEEDS_FLOAT32, SCALES, UNMERGEABLE
from ftengine_peft.options import strictly
from ftengine_peft.packed import packed_layers, require_no_values
from ftengine_peft.targets import chosen, require_outside, whole_modules


class PeftStrategy(api.Strategy):
    """Train with a method of PEFT; each method has a subclass, made from PEFT's own list."""

    peft_type: ClassVar[str]

    def prepare(self, loaded: api.LoadedModel) -> None:
        """Let PEFT freeze the model and add its modules, in place.

        The model object stays the same, as do its outputs, `generate`, and names outside of adapted layers. A PeftModel
        around it is kept for PEFT's functions, and computes nothing.

        Raises:
            NoMatch: a pattern matches no module, or a module that trains as a whole.
            RecipeError: PEFT refuses the options for this model, or the method needs float weights and they are packed.
        """
        module, self._whole = loaded.module, whole_modules(loaded)
        config: Any = self.config.peft_config()
        if self.peft_type != "ADAPTION_PROMPT":
            config.target_modules = chosen(config.target_modules, loaded, self._whole)
        on_meta, packed = any(parameter.is_meta for parameter in module.parameters()), packed_layers(module)
        asked = copy.deepcopy(config)
        if on_meta:
            _ask_no_values(config)
        elif self.peft_type in NEEDS_FLOAT32 and not packed:
            self._require_float32(module)
        try:
            text = f"PEFT refuses {self.name!r} with these options for {type(module).__name__}"
            with refusing(text), strictly(config):
                self._model: PeftModel = get_peft_model(module, config)
        except Exception:
            require_no_values(self.name, asked, packed, packed)
            raise
        _renew_hooks(module)
        with refusing("PEFT could not read what it would write"):
            type(config)(**as_stored(config))
        trained = trainable(module)
        if not sum(parameter.numel() for parameter in trained.values()):
            raise RecipeError(f"strategy {self.name!r} trains nothing with these options.")
        # Methods that replace whole blocks keep no list of what they adapted.
        known = getattr(self._model.base_model, "targeted_module_names", None)
        self._adapted = list(known or dict.fromkeys(name.rpartition(".")[0] for name in trained))
        require_outside(self._adapted, self._whole)
        require_no_values(self.name, asked, packed, self._adapted)
        for path in self._whole:
            module.get_submodule(path).requires_grad_(True)
        if on_meta:
            _to_meta(module)

    def matches(self) -> dict[str, list[str]]:
        config: Any = self._model.peft_config["default"]
        targets, written = config.target_modules, self.config.target_modules
        if isinstance(written, str) or not targets:
            return {written or "PEFT's own choice": self._adapted}
        if isinstance(targets, str):
            return {targets: self._adapted}
        return {name: matching(self._adapted, name, full_match=False) for name in sorted(targets)}

    def environment(self) -> dict[str, Any]:
        """Return PEFT's version."""
        return {"peft": peft.__version__}

    def param_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Group trainable parameters; scales that PEFT stores as matrices do not decay."""
        names = {name for name in decayed(model) if not any(f".{scale}." in name for scale in SCALES)}
        return default_param_groups(model, learning_rate, weight_decay, decays=names)

    def save(self, loaded: api.LoadedModel, directory: Path) -> None:
        """Write the files of PEFT's `save_pretrained`: adapter_config.json and adapter_model.safetensors."""
        write(self._model, loaded, self._whole, Path(directory))

    def load(self, loaded: api.LoadedModel, directory: Path) -> None:
        """Read an adapter, trained here or by PEFT, into a prepared model.

        Raises:
            RunError: the folder holds no adapter of this method.
            BaseMismatch: options, keys or shapes differ.
        """
        directory, origin = Path(directory), str(Path(directory) / WEIGHTS_FILE)
        require_same(self._model.peft_config["default"], type(self.config).model_fields, directory)
        tensors = read_tensors(directory / WEIGHTS_FILE)
        whole, own = whole_tensors(loaded, self._whole), adapter_tensors(self._model)
        # Into copies, so that what does not fit leaves the model as it is; PEFT puts names back in its own way.
        copy_into({key: tensor.clone() for key, tensor in (own | whole).items()}, tensors, origin)
        result: Any = set_peft_model_state_dict(self._model, {key: tensors[key] for key in own})
        if result.unexpected_keys:
            raise BaseMismatch(
                f"{origin} does not fit this model: PEFT has no place for {result.unexpected_keys[0]!r}."
            )
        copy_into(whole, {key: tensors[key] for key in whole}, origin)

    def check_merge(self) -> None:
        if self.peft_type in UNMERGEABLE:
            raise NotMergeable(
                f"strategy {self.name!r} cannot be merged into its base: {UNMERGEABLE[self.peft_type]}. "
                "Serve the base with the adapter."
            )

    def merge(self, loaded: api.LoadedModel) -> None:
        """Let PEFT merge its modules into the base's weights and remove them.

        Raises:
            NotMergeable: a weight is shared with another module, or PEFT cannot merge the method.
        """
        self._require_untied(loaded.module)
        try:
            self._model.merge_and_unload()
        except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
            raise NotMergeable(f"PEFT cannot merge this adapter: {error}. Serve the base with it.") from None

    def _require_float32(self, module: nn.Module) -> None:
        narrow = {str(p.dtype)[6:] for p in module.parameters() if p.is_floating_point()} - {"float32"}
        if narrow:
            raise RecipeError(
                f"strategy {self.name!r} needs the base in float32, and some of it is {narrow.pop()}: "
                f"{NEEDS_FLOAT32[self.peft_type]}. Set train.precision=float32."
            )

    def _require_untied(self, module: nn.Module) -> None:
        if self.peft_type == "TRAINABLE_TOKENS":  # changes all that share the embedding
            return
        holders = Counter(id(p) for part in module.modules() for p in part.parameters(recurse=False))
        for path in self._adapted:
            weight = getattr(getattr(module.get_submodule(path), "base_layer", None), "weight", None)
            if holders[id(weight)] > 1:
                raise NotMergeable(
                    f"the weight of {path!r} is shared with another module; merging would change both. "
                    "Serve the base with the adapter, or untie the weights of the base first."
                )


@contextmanager
def refusing(text: str) -> Iterator[None]:
    """Within the block, turn PEFT's errors about options into RecipeError."""
    try:
        yield
    except (NotImplementedError, TypeError, ValueError, Warning) as error:
        message = " ".join(str(error).split()).rstrip(".")
        raise RecipeError(f"{text}: {message}. Change the options of `strategy`.") from error


def _renew_hooks(module: nn.Module) -> None:
    """Attach OSF's hooks on gradients anew: PEFT puts wider parameters in the place of those that have them."""
    part: Any
    for part in module.modules():
        if hasattr(part, "_attach_hooks"):
            part._detach_hooks()
            part._attach_hooks("default")


def _ask_no_values(config: Any) -> None:
    """Change what would read the values of weights: shapes stay the same."""
    if hasattr(config, "mask_fn"):  # of SHiRA, which looks for where the mask is set
        config.mask_fn = _any_mask
    if isinstance(getattr(config, "init_lora_weights", None), str):
        config.init_lora_weights = True


def _any_mask(layer: Any, r: int, **_: Any) -> torch.Tensor:
    """Return a mask with values for a layer without any, (out, in); as many are set as SHiRA trains weights."""
    mask = torch.zeros(layer.weight.shape)
    mask.view(-1)[: r * sum(mask.shape)] = 1
    return mask


def _to_meta(module: nn.Module) -> None:
    """Move what PEFT made on the CPU beside a model without values; shared parameters stay shared."""
    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False, remove_duplicate=False)):
            if not parameter.is_meta:
                new = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
                part.register_parameter(name, moved.setdefault(id(parameter), new))
