"""Cached outputs of a frozen encoder, so that each recording is encoded once per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ftengine_speech.rows import features_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ftengine.api import LoadedModel

RECORDING, SAMPLES = "recording", "samples"
"""Keys of a batch whose recordings may be encoded already: (n, 3) int64, a hash of each recording's samples and their
number; (n, longest) float32, the samples. Features are made of them where something reads features."""

RATES = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop")


class EncoderStates:
    """The states of recordings, by a hash of their samples, while they fit into `most` bytes.

    States are cached only if the encoder has no trained parameters and no dropout, so that it computes the same again
    up to rounding.
    """

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._kept: WeakKeyDictionary[nn.Module, dict[Any, Tensor]] = WeakKeyDictionary()

    @property
    def kept(self) -> bool:
        """Whether states of a model are kept."""
        return bool(self._kept)

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

    def inputs(self, model: nn.Module, batch: Mapping[str, Any], processor: Any) -> dict[str, Any]:
        """Return a batch's arguments for the model, with the encoder's output if it is cached."""
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        kept = self._kept.get(model)
        if kept is None or RECORDING not in batch or (torch.is_grad_enabled() and _trains(model)):
            return with_features(batch, processor)
        rest = {key: batch[key] for key in ("labels", "decoder_input_ids") if key in batch}
        device = batch[RECORDING].device
        kind = (torch.is_autocast_enabled(device.type), model.dtype)
        keys = [(*kind, *row) for row in batch[RECORDING].tolist()]
        new = [i for i, key in enumerate(keys) if key not in kept]
        computed: dict[Any, Tensor] = {}
        if new:
            encoder: Any = model.get_encoder()  # type: ignore[operator]
            features = with_features({key: batch[key][new] for key in (RECORDING, SAMPLES)}, processor)
            with torch.no_grad():
                states = encoder(features["input_features"].to(model.dtype)).last_hidden_state
            computed = {keys[i]: state for i, state in zip(new, states, strict=True)}
            for key, state in computed.items():
                size = state.numel() * state.element_size()
                if key not in kept and self._bytes + size <= self._most:
                    kept[key] = state.detach().cpu().clone()
                    self._bytes += size
        stacked = torch.stack([computed[key] if key in computed else kept[key].to(device) for key in keys])
        return {**rest, "encoder_outputs": BaseModelOutput(last_hidden_state=stacked)}

    def _forget(self, module: nn.Module) -> None:
        for state in self._kept.pop(module, {}).values():
            self._bytes -= state.numel() * state.element_size()


def _trains(model: Any) -> bool:
    return any(parameter.requires_grad for parameter in model.get_encoder().parameters())


def recordings(waves: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return samples as a batch from which `with_features` makes features: RECORDING and SAMPLES."""
    import torch

    padded = torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True)
    return {RECORDING: torch.tensor([_fingerprint(wave) for wave in waves]), SAMPLES: padded}


def with_features(batch: Mapping[str, Any], processor: Any) -> dict[str, Any]:
    """Return a batch with the model's features instead of samples."""
    rest = {key: value for key, value in batch.items() if key not in (RECORDING, SAMPLES)}
    if SAMPLES not in batch:
        return rest
    device, counts = batch[SAMPLES].device, batch[RECORDING][:, -1].tolist()
    waves = [wave[:count] for wave, count in zip(batch[SAMPLES].cpu(), counts, strict=True)]
    return rest | {key: value.to(device) for key, value in features_of(processor, waves).items()}


def _fingerprint(samples: torch.Tensor) -> list[int]:
    """Return two numbers that identify a recording, and the number of its samples."""
    from hashlib import blake2b

    digest = blake2b(samples.contiguous().numpy().tobytes(), digest_size=16).digest()
    return [*(int.from_bytes(part, "little", signed=True) for part in (digest[:8], digest[8:])), len(samples)]
