"""Fresh modules: what a checkpoint did not bring and was therefore initialised at random."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import transformers

from ftengine.errors import SourceError

Shape = tuple[int, ...]


def fresh_modules(module: Any, keys: Iterable[str], source: str, *, head_may_be_new: bool) -> tuple[str, ...]:
    """Name the modules that begin afresh, the fewest that cover `keys`, which the checkpoint does not hold so.

    A head may begin afresh where the task teaches it (`head_may_be_new`), and so may a pooler, which belongs to the
    head though it lives in the base. Any other missing weight would be noise in the middle of the model.

    Raises:
        SourceError: names the weights that the checkpoint lacks.
    """
    keys = set(keys)
    allowed = {key for key in keys if head_may_be_new and "." in key and not _in_base(module, key)}
    lacking = sorted(keys - allowed)
    if lacking:
        some = ", ".join(lacking[:3]) + (", …" if len(lacking) > 3 else "")
        raise SourceError(
            f"{source!r} does not hold {len(lacking)} of the weights that {type(module).__name__} needs ({some}), or "
            "holds them in another shape. Its config.json and its weights do not belong together, or it was saved "
            "for another task."
        )
    return tuple(sorted({_outermost(module, key, keys) for key in keys}))


def predicted_fresh(module: Any, saved_config: Any, stored: Mapping[str, Shape | None] | None = None) -> set[str]:
    """Tell which parameters of a model on the meta device a checkpoint lacks, without reading it.

    Args:
        saved_config: the checkpoint's config before labels were written into it.
        stored: the shape of each tensor that the checkpoint holds, None where only its name is known. Without it, they
            are assumed to be those of the class that the config says it was saved from.
    """
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    prefix = f"{module.base_model_prefix}."
    saved = _saved_shapes(saved_config)
    if stored is not None:
        bare = {key.removeprefix(prefix): shape for key, shape in stored.items()}
        saved = {key: saved.get(key) if shape is None else shape for key, shape in bare.items()}
    lacking = {key for key, shape in wanted.items() if saved.get(key.removeprefix(prefix)) != shape}
    return {key for key in lacking if not _in_base(module, key)}


def _saved_shapes(config: Any) -> dict[str, Shape | None]:
    """Return parameter shapes, base prefix left out, of the class that wrote a checkpoint; none where unknown."""
    cls = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        return {}
    with torch.device("meta"):
        model = cls(config)
    prefix = f"{cls.base_model_prefix}."
    return {key.removeprefix(prefix): tuple(value.shape) for key, value in model.state_dict().items()}


def _in_base(module: Any, key: str) -> bool:
    return key.startswith(f"{module.base_model_prefix}.") and "pooler" not in key.split(".")


def _outermost(module: Any, key: str, fresh: set[str]) -> str:
    """Climb from a parameter to the outermost module, short of the model itself, that is fresh throughout."""
    name = key.rpartition(".")[0]
    while "." in name:
        parent = name.rpartition(".")[0]
        inside = {k for k in module.state_dict(keep_vars=True) if k.startswith(f"{parent}.")}
        if not inside <= fresh:
            break
        name = parent
    return name
