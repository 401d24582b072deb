"""What a measurement is asked for: read from text, and refused before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ftengine.errors import InputError, did_you_mean
from ftengine.ops import instruction_sets, quantise_dropout
from ftengine.ops.eligibility import DTYPES, MAX_RANK
from ftengine_bench.options import OPTIONS
from ftengine_bench.providers import PROVIDERS, dtype_name, why_unavailable
from ftengine_bench.shapes import Shape, parse_shape, preset_shapes

DEFAULT_PRESET = "smollm2-135m"


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        dropouts: p of each layer, multiples of 1/65536, as they are applied.
        dtypes: of x and the frozen weight; the factors A and B are float32, as in training.
        seconds: that measuring takes for each provider of a layer, and for each operator.
        left_out: providers that were not asked for by name and are not there, with the reason.
    """

    shapes: tuple[Shape, ...]
    ranks: tuple[int, ...]
    dropouts: tuple[float, ...]
    dtypes: tuple[torch.dtype, ...]
    device: str
    providers: tuple[str, ...]
    instruction_set: str
    seconds: float
    left_out: dict[str, str]

    @classmethod
    def parse(cls, **given: Any) -> Settings:
        """Read settings as the command line gives them, those of `OPTIONS`: lists are separated by commas.

        Raises:
            InputError: something is unknown, malformed, or not to be had on this machine.
        """
        options = {name: default for name, (_, _, default, _) in OPTIONS.items()} | given
        device, preset, seconds = choose_device(options["device"]), options["preset"], options["seconds"]
        found = [parse_shape(shape) for shape in options["shapes"]]
        if preset is not None or not found:
            found = preset_shapes(preset or DEFAULT_PRESET, _integers("--tokens", options["tokens"], 1, 2**31)) + found
        if not 0 < seconds < math.inf:
            raise InputError(f"--seconds {seconds}: it must be a number above 0, for example 0.5.")
        chosen, left_out = _choose_providers(options["providers"], device)
        return cls(
            shapes=tuple(dict.fromkeys(found)),
            ranks=_integers("--ranks", options["ranks"], 1, MAX_RANK),
            dropouts=_dropouts(options["dropout"]),
            dtypes=_dtypes(options["dtypes"], device),
            device=device,
            providers=chosen,
            instruction_set=_choose_instruction_set(options["instruction_set"], device),
            seconds=seconds,
            left_out=left_out,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "shapes": [str(shape) for shape in self.shapes],
            "dtypes": [dtype_name(dtype) for dtype in self.dtypes],
        }


def choose_device(name: str) -> str:
    """Return "cpu" or "cuda" for "auto", "cpu" or "cuda".

    Raises:
        InputError: another name, or a GPU that is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    _require_known(name, DTYPES, f"--device {name!r}: it must be auto, {' or '.join(DTYPES)}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"--device cuda: torch {torch.__version__} finds no NVIDIA GPU here. Use --device cpu, or a machine with "
            "a GPU, its driver, and a torch built for CUDA."
        )
    return name


def _require_known(name: str, known: Collection[str], message: str) -> None:
    if name not in known:
        raise InputError(message + did_you_mean(name, known))


def _choose_providers(text: str, device: str) -> tuple[tuple[str, ...], dict[str, str]]:
    missing = {name: reason for name in PROVIDERS if (reason := why_unavailable(name, device))}
    if text == "auto":
        if device == "cpu":
            missing.setdefault("torch-compile", "takes minutes to compile on a CPU; name it in --providers")
        return tuple(name for name in PROVIDERS if name not in missing), missing
    chosen = _items("--providers", text)
    for name in chosen:
        _require_known(name, PROVIDERS, f"no provider {name!r} (--providers). There are {', '.join(PROVIDERS)}.")
        if name in missing:
            raise InputError(f"--providers {name}: {missing[name]}.")
    # The frozen layer is what everything else is compared with.
    return tuple(name for name in PROVIDERS if name in {"frozen", *chosen}), {}


def _choose_instruction_set(name: str, device: str) -> str:
    known = ("auto", *(instruction_sets() if device == "cpu" else ()))
    _require_known(name, known, f"--instruction-set {name!r}: on {device} here it may be {', '.join(known)}.")
    return name


def _dtypes(text: str, device: str) -> tuple[torch.dtype, ...]:
    known = {dtype_name(dtype): dtype for dtype in DTYPES[device]}
    chosen = _items("--dtypes", text)
    for name in chosen:
        _require_known(name, known, f"--dtypes {name!r}: on {device}, kernels exist for {', '.join(known)}.")
    return tuple(known[name] for name in chosen)


def _dropouts(text: str) -> tuple[float, ...]:
    values = []
    for item in _items("--dropout", text):
        try:
            values.append(quantise_dropout(float(item)))
        except ValueError:
            raise InputError(f"--dropout {item!r}: write numbers from 0 to below 1, for example 0,0.05.") from None
    return tuple(dict.fromkeys(values))


def _integers(option: str, text: str, least: int, most: int) -> tuple[int, ...]:
    values = []
    for item in _items(option, text):
        if not item.isascii() or not item.isdigit() or not least <= int(item) <= most:
            raise InputError(f"{option} {item!r}: write whole numbers from {least} to {most}, separated by commas.")
        values.append(int(item))
    return tuple(values)


def _items(option: str, text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise InputError(f"{option} {text!r}: an item is empty; separate items by single commas.")
    return list(dict.fromkeys(items))
