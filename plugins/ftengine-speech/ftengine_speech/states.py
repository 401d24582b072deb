"""Cached outputs of a frozen encoder, so that each recording is encoded once per run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ftengine.api import LoadedModel

RECORDING = "recording"
"""The key of a batch that tells its recordings apart: (n, 2) int64, a hash of the samples."""

RATES = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop")


class EncoderStates:
    """The states of recordings, by a hash of their samples, while they fit into `most` bytes.

    States are cached only if the encoder has no trained parameters and no dropout, so that it computes the same again
    up to rounding.
    """

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._kept: WeakKeyDictionary[nn.Module, dict[Any, Tensor]] = WeakKeyDictionary()

    def follow(self, loaded: LoadedModel, *, prepared: bool) -> None:
        """Decide whether states of a model are kept; `prepared`: by a strategy."""
        module: Any = loaded.module
        if not hasattr(module, "get_encoder") or next(module.parameters()).is_meta:
            return
        ids = {id(parameter) for parameter in module.get_encoder().parameters()}
        own = {name for name, parameter in module.named_parameters() if id(parameter) in ids}
        if (
            any(getattr(module.config, rate, 0) for rate in RATES)
            or getattr(module.config, "apply_spec_augment", False)
            or (prepared and not (own <= loaded.pretrained and not _trains(module)))
        ):
            self._forget(module)
        else:
            self._kept.setdefault(module, {})

    def inputs(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch's arguments for the model, with the encoder's output if it is cached."""
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        rest = {key: value for key, value in batch.items() if key != RECORDING}
        kept = self._kept.get(model)
        if kept is None or RECORDING not in batch or (torch.is_grad_enabled() and _trains(model)):
            return rest
        features = {key: rest.pop(key) for key in list(rest) if key not in ("labels", "decoder_input_ids")}
        kind = (torch.is_autocast_enabled(features["input_features"].device.type), model.dtype)
        keys = [(*kind, *row) for row in batch[RECORDING].tolist()]
        new = [i for i, key in enumerate(keys) if key not in kept]
        computed: dict[Any, Tensor] = {}
        if new:
            encoder: Any = model.get_encoder()  # type: ignore[operator]
            with torch.no_grad():
                states = encoder(features["input_features"][new]).last_hidden_state
            computed = {keys[i]: state for i, state in zip(new, states, strict=True)}
            for key, state in computed.items():
                size = state.numel() * state.element_size()
                if key not in kept and self._bytes + size <= self._most:
                    kept[key] = state.detach().cpu().clone()
                    self._bytes += size
        device = features["input_features"].device
        stacked = torch.stack([computed[key] if key in computed else kept[key].to(device) for key in keys])
        return {**rest, "encoder_outputs": BaseModelOutput(last_hidden_state=stacked)}

    def _forget(self, module: nn.Module) -> None:
        for state in self._kept.pop(module, {}).values():
            self._bytes -= state.numel() * state.element_size()


def _trains(model: Any) -> bool:
    return any(parameter.requires_grad for parameter in model.get_encoder().parameters())


def fingerprint(samples: torch.Tensor) -> list[int]:
    """Return two numbers that identify a recording."""
    from hashlib import blake2b

    digest = blake2b(samples.contiguous().numpy().tobytes(), digest_size=16).digest()
    return [int.from_bytes(part, "little", signed=True) for part in (digest[:8], digest[8:])]
