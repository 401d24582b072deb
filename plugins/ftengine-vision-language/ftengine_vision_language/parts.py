"""The parts of a vision-language model: vision part, projector and language part, and which of them train."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ftengine.model import parameter_sizes, trainable
from ftengine.text import counted, percent

VISION, PROJECTOR, LANGUAGE = "vision part", "projector", "language part"
HEAD = "lm_head"
MERGER = "merger"
"""In the name of Qwen's projectors, which are modules of the vision part."""


def parts_of(module: Any, names: Iterable[str]) -> dict[str, str]:
    """Return the part that each of some modules or parameters belongs to; {} for a model that does not tell its parts.

    What is neither in the image encoder nor in the decoder that transformers names is the projector.
    """
    paths = {id(inner): path for path, inner in module.named_modules()}
    owner = next((inner for inner in module.modules() if hasattr(inner, "get_encoder")), None)
    if owner is None:
        return {}
    vision, language = (paths.get(id(part)) for part in (owner.get_encoder(modality="image"), owner.get_decoder()))
    if not vision or not language:
        return {}

    def part(name: str) -> str:
        if _inside(name, vision):
            return PROJECTOR if MERGER in name.removeprefix(vision) else VISION
        return LANGUAGE if _inside(name, language) or HEAD in name.split(".") else PROJECTOR

    return {name: part(name) for name in names}


def _inside(name: str, path: str) -> bool:
    return f"{name}.".startswith(f"{path}.")


def shares(module: Any) -> dict[str, tuple[int, int]]:
    """Return how many parameters of each part train, and how many it has."""
    sizes, trained = parameter_sizes(module), trainable(module).keys()
    found = dict.fromkeys((LANGUAGE, PROJECTOR, VISION), (0, 0))
    for name, part in parts_of(module, sizes).items():
        trains, whole = found[part]
        found[part] = trains + sizes[name] * (name in trained), whole + sizes[name]
    return {part: counts for part, counts in found.items() if counts[1]}


def trained_parts(module: Any) -> list[str]:
    """Return a sentence on each part: how much of it trains."""
    return [
        f"{part}: {trains:,} of {whole:,} parameters train ({percent(trains / whole)})"
        for part, (trains, whole) in shares(module).items()
    ]


def unintended_matches(module: Any, matches: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield a warning for each pattern of a strategy that matched layers of the vision part beside others, which train.

    A pattern that matches the vision part alone is meant for it.
    """
    trained = list(trainable(module))
    for pattern, modules in matches.items():
        part = parts_of(module, modules)
        seeing = [path for path in modules if part.get(path) == VISION and any(_inside(n, path) for n in trained)]
        if seeing and len(seeing) < len(modules):
            yield (
                f"the pattern {pattern} matches {counted(len(seeing), 'module')} of the vision part too, e.g. "
                f"{seeing[0]!r}, which train as well: leave strategy.targets out for the language part alone, or name "
                "the vision part by a pattern of its own."
            )
