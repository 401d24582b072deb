"""The ways to compute one thing that are promised to be equal: a row each, and the cells where it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from cells import ARCHITECTURES, STRATEGIES, Cell
from counted import counting
from traces import Trace, train

from ftengine.ops import instruction_sets, use_instruction_set, use_reference

Context = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Way:
    """One way to compute a run: what its recipe says, what holds meanwhile, and what `traces.train` is told."""

    recipe: Mapping[str, Any] = field(default_factory=dict)
    context: Context = nullcontext
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, cell: Cell, folder: Path, output: str, fault: Context = nullcontext) -> Trace:
        with ExitStack() as stack:
            stack.enter_context(self.context())
            taken = stack.enter_context(counting())
            stack.enter_context(fault())
            trace = train(cell.recipe(folder, output, self.recipe), **self.options)
        trace.taken.update(taken)
        return trace


@dataclass(frozen=True)
class Dimension:
    """Two ways that are promised to come to the same.

    Args:
        other, plain: the ways.
        dropout: whether both draw the same masks, so that dropout is on.
        exact: whether the bits are promised, not only numbers that rounding explains.
        strategies, architectures: where it applies.
        more: whether the plain way does what is counted too, only less often.
    """

    other: Way
    plain: Way = Way()
    dropout: bool = False
    exact: bool = False
    strategies: tuple[str, ...] = tuple(STRATEGIES)
    architectures: tuple[str, ...] = tuple(ARCHITECTURES)
    more: bool = False

    def fits(self, strategy: str, architecture: str) -> bool:
        return (
            strategy in self.strategies
            and architecture in self.architectures
            and f"{strategy} {architecture}" not in UNFIT
        )


MIXTURES = ("mixtral", "qwen3-moe", "olmoe", "gpt-oss")
"""Of experts."""

UNFIT = frozenset(
    {f"{strategy} {name}" for strategy in ("prompt", "prefix") for name in ("vit", "resnet")}
    | {"prefix t5", "prefix bart"}
    | {f"adapter {name}" for name in ("gemma3", "phi3", "gpt-neox", "bart")}
    | {
        f"bitfit {name}"
        for name in ("llama", "qwen3", "gemma3", "phi3", "mistral", "mixtral", "olmoe", "qwen3-moe", "t5")
    }
    | {f"dora {name}" for name in MIXTURES}
)
"""What a strategy refuses: images have no token embeddings, encoders no cache, adapters no places, these no biases, and
experts no magnitudes."""

DECODERS = tuple(name for name, kind in ARCHITECTURES.items() if kind.task == "causal-lm")
ROOT_MEAN_SQUARE = ("llama", "qwen3", "gemma3", "phi3", "mistral", *MIXTURES, "t5")
GROUPED_KEYS = ("llama", "qwen3", "gemma3", "phi3", "mistral", "mixtral", "qwen3-moe", "olmoe")
ONE_STACK = tuple(name for name in ARCHITECTURES if name not in ("t5", "bart", "resnet"))
LORA, ADDED = ("lora", "dora"), ("lora", "dora", "adapter", "bitfit")

Z_LOSS = {"name": "load-balancing", "coefficient": 0, "z_coefficient": 1.0}
"""A mean over tokens, in which batches of any division come to the same; the loss of loads is a product of two."""

OFF = Way({"train.fast_paths": "off"})

TWICE = {"train.max_steps": 6, "train.epochs": 2}
TOP = {
    "lora": {"strategy.targets": r".*(layers?|h|blocks?)\.1\..*", "strategy.dropout": 0.1},
    "dora": {"strategy.targets": r".*(layers?|h|blocks?)\.1\..*", "strategy.dropout": 0.1},
    "adapter": {"strategy.leave_out": [0], "strategy.dropout": 0.1},
}
"""Options with which a strategy trains the upper of two blocks alone."""


def _environ(**variables: str) -> Context:
    return lambda: mock.patch.dict("os.environ", variables)


DIMENSIONS: dict[str, Dimension] = {
    "accumulation": Dimension(Way({"train.batch_size": 1, "train.accumulate": 4}), more=True),
    "token-limit": Dimension(
        Way({"train.batch_tokens": 50}),
        more=True,
        architectures=tuple(name for name in ARCHITECTURES if name not in ("vit", "resnet")),  # photos are of one size
    ),
    "router-losses": Dimension(
        Way({"train.batch_size": 1, "train.accumulate": 4, "regularize": [Z_LOSS]}),
        Way({"regularize": [Z_LOSS]}),
        more=True,
        strategies=("full", "lora"),
        architectures=("mixtral", "qwen3-moe", "olmoe", "gpt-oss"),
    ),
    "packing": Dimension(
        Way({"task.packing": True}),
        architectures=tuple(name for name in DECODERS if name != "gpt-oss"),  # which is refused: its sinks want a mask
        strategies=("full", "lora", "dora", "adapter", "bitfit"),
    ),
    "grouped-layers": Dimension(
        Way({"train.fast_paths": "grouped-layers"}),
        OFF,
        strategies=("lora",),
        architectures=("llama", "qwen3", "gemma3", "mistral", *MIXTURES, "bert", "t5", "bart", "vit"),
    ),
    "shared-prefix": Dimension(
        Way({"train.fast_paths": "shared-prefix"}),
        OFF,
        architectures=tuple(name for name in DECODERS if name != "gpt-oss"),  # whose sinks no shared attention has
        strategies=tuple(STRATEGIES),
    ),
    "frozen-prefix": Dimension(
        Way({**TWICE, "train.fast_paths": "frozen-prefix"}),
        Way({**TWICE, "train.fast_paths": "off"}),
        strategies=tuple(TOP),
        architectures=ONE_STACK,
    ),
    "checkpointing": Dimension(
        Way({"train.gradient_checkpointing": True}),
        dropout=True,
        exact=True,
        strategies=tuple(name for name in STRATEGIES if name != "prefix"),
        architectures=tuple(name for name in ARCHITECTURES if name != "resnet"),
    ),
    "norms": Dimension(
        Way({"train.fast_paths": "cpu-norms"}),
        OFF,
        dropout=True,
        architectures=ROOT_MEAN_SQUARE,
    ),
    "grouped-keys": Dimension(
        Way({"train.fast_paths": "grouped-keys"}),
        Way({"train.fast_paths": "off"}, _environ(TRANSFORMERS_SDPA_FORCE_GQA="0")),
        architectures=GROUPED_KEYS,
    ),
    "kernels": Dimension(Way(), Way(context=use_reference), dropout=True),
    **{
        f"instructions-{name}": Dimension(
            Way(context=partial(use_instruction_set, name)), dropout=True, strategies=("full", *LORA, "adapter")
        )
        for name in instruction_sets()[1:]  # the first is what every run takes
    },
    "resume": Dimension(
        Way({"train.optimizer": "adamw", "train.checkpoint_every": 1}, options={"interrupted_after": 2}),
        Way({"train.optimizer": "adamw", "train.checkpoint_every": 1}),
        dropout=True,
        exact=True,
    ),
    "merge": Dimension(Way(options={"merged": True}), strategies=("lora", "dora", "bitfit")),
    "answers-together": Dimension(Way(), Way(options={"apart": True}), more=True),  # validation is in batches anyway
}


def ways(name: str, cell: Cell) -> tuple[Way, Way]:
    """Return both ways of a dimension in a cell: the plain one and the other."""
    dimension = DIMENSIONS[name]
    both = dimension.plain, dimension.other
    if name != "frozen-prefix":
        return both
    return tuple(Way({**way.recipe, **TOP[cell.strategy]}, way.context, way.options) for way in both)  # type: ignore
