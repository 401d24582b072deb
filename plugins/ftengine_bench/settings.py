"""The settings of a measurement, parsed and checked before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch

from ftengine.errors import InputError, did_you_mean
from ftengine.ops import instruction_sets, quantise_dropout
from ftengine.ops.eligibility import DTYPES, MAX_RANK
from ftengine_bench.layers import PROVIDERS, Shape, dtype_name, parse_shape, preset_shapes, why_unavailable
from ftengine_bench.options import KERNELS

DEFAULT_PRESET = "smollm2-135m"

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Settings:
    """The settings of a measurement.

    Args:
        dropouts: dropout probabilities, rounded to multiples of 1/65536.
        dtypes: of x and the frozen weight; the factors A and B are float32, as in training.
        launch: "call", or "graph" for CUDA graphs.
        seconds: measuring time for each provider of a layer, and for each operator.
        left_out: unavailable providers, unless named by the user, with the reason.
    """

    shapes: tuple[Shape, ...]
    ranks: tuple[int, ...]
    dropouts: tuple[float, ...]
    dtypes: tuple[torch.dtype, ...]
    device: str
    providers: tuple[str, ...]
    instruction_set: str
    launch: str
    seconds: float
    left_out: dict[str, str]

    @classmethod
    def parse(cls, **given: Any) -> Settings:
        """Parse the command line's options (`KERNELS`); lists are separated by commas.

        Raises:
            InputError: an option is unknown, malformed, or not available on this machine.
        """
        asked = {flag[2:].replace("-", "_"): default for flag, (_, default, _) in KERNELS.items()} | given
        device, preset = _device(asked["device"]), asked["preset"]
        shapes = [parse_shape(shape) for shape in asked["shape"]]
        if preset is not None or not shapes:
            shapes = preset_shapes(preset or DEFAULT_PRESET, _whole("--tokens", asked["tokens"], 2**31)) + shapes
        providers, left_out = _providers(asked["providers"], device)
        sets, chosen = ["auto", *(instruction_sets() if device == "cpu" else ())], [asked["instruction_set"]]
        known = {dtype_name(dtype): dtype for dtype in DTYPES[device]}
        launches = ["call", *(["graph"] if device == "cuda" else [])]
        named = list(known) if asked["dtypes"] == "auto" else _items("--dtypes", asked["dtypes"])
        dtypes = _known("--dtypes", named, known, f"on {device}, kernels exist for")
        dropouts = [
            _number("--dropout", item, lambda text: quantise_dropout(float(text)), "numbers from 0 to below 1")
            for item in _items("--dropout", asked["dropout"])
        ]
        return cls(
            shapes=tuple(dict.fromkeys(shapes)),
            ranks=_whole("--ranks", asked["ranks"], MAX_RANK),
            dropouts=tuple(dict.fromkeys(dropouts)),
            dtypes=tuple(known[name] for name in dtypes),
            device=device,
            providers=providers,
            instruction_set=_known("--instruction-set", chosen, sets, f"on {device} here there are")[0],
            launch=_known("--launch", [asked["launch"]], launches, f"on {device} there is")[0],
            seconds=_number("--seconds", asked["seconds"], _above_0, "a number above 0, for example 0.5"),
            left_out=left_out,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "shapes": [str(shape) for shape in self.shapes],
            "dtypes": [dtype_name(dtype) for dtype in self.dtypes],
        }


def _device(name: str) -> str:
    """Return "cpu" or "cuda" for "auto", "cpu" or "cuda"."""
    _known("--device", [name], ("auto", *DTYPES), "there are")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"--device cuda: torch {torch.__version__} finds no NVIDIA GPU here. Use --device cpu, or a machine with "
            "a GPU, its driver, and a torch built for CUDA."
        )
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _providers(text: str, device: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return what is timed, and why what was not asked for by name is not."""
    missing = {name: reason for name in PROVIDERS if (reason := why_unavailable(name, device))}
    if text == "auto":
        if device == "cpu":
            missing.setdefault("torch-compile", "takes minutes to compile on a CPU; name it in --providers")
        return tuple(name for name in PROVIDERS if name not in missing), missing
    chosen = _known("--providers", _items("--providers", text), PROVIDERS, "there are")
    for name in chosen:
        if name in missing:
            raise InputError(f"--providers {name}: {missing[name]}.")
    # The frozen layer is what everything else is compared with.
    return tuple(name for name in PROVIDERS if name in {"frozen", *chosen}), {}


def _known(option: str, names: list[str], known: Iterable[str], lead: str) -> list[str]:
    """Return names that are known, or refuse the first that is not."""
    known = list(known)
    for name in names:
        if name not in known:
            raise InputError(f"{option} {name!r}: {lead} {', '.join(known)}.{did_you_mean(name, known)}")
    return names


def _number(option: str, text: str, read: Callable[[str], Number], what: str) -> Number:
    try:
        return read(text)
    except ValueError:
        raise InputError(f"{option} {text!r}: write {what}.") from None


def _whole(option: str, text: str, most: int) -> tuple[int, ...]:
    def read(item: str) -> int:
        if not (item.isascii() and item.isdigit() and 1 <= int(item) <= most):
            raise ValueError
        return int(item)

    what = f"whole numbers from 1 to {most}, separated by commas"
    return tuple(dict.fromkeys(_number(option, item, read, what) for item in _items(option, text)))


def _above_0(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise ValueError
    return float(text)


def _items(option: str, text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise InputError(f"{option} {text!r}: an item is empty; separate items by single commas.")
    return list(dict.fromkeys(items))
