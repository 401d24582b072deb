"""Which layers of a model are quantised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ftengine.api import LoadedModel
from ftengine.errors import SourceError
from ftengine.model import find_modules

# Their forward reads the weights of these children directly, whatever class they have.
READS_CHILDREN = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def layers_to_quantise(loaded: LoadedModel, skip: str | Sequence[str]) -> dict[str, nn.Linear]:
    """Return a model's linear layers by path, but for heads, new modules, what is shared, and what is skipped.

    What lies outside of the base model that transformers knows is a head: it stays as it is, as new modules do, because
    it is small and every error in it shows in the answers.

    Args:
        loaded: the model as its loader left it, on any device, meta too.
        skip: a regular expression for whole paths, or a list of paths and their endings.

    Raises:
        NoMatch: `skip` names no module.
        SourceError: no layer is left.
    """
    module: Any = loaded.module
    left = {path for paths in find_modules(module, skip, "model.loader.skip").values() for path in paths}
    left |= set(loaded.new_modules)
    output = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    base = getattr(module, "base_model", module)
    inside = {id(part) for part in (base if isinstance(base, nn.Module) else module).modules()}
    holders = Counter(id(p) for part in module.modules() for p in part.parameters(recurse=False))
    left |= {path for path, part in module.named_modules() if isinstance(part, READS_CHILDREN)}
    layers = {
        path: part
        for path, part in module.named_modules()
        if type(part) is nn.Linear
        and part is not output
        and id(part) in inside
        and part.weight.dtype in FLOATS
        and holders[id(part.weight)] == 1
        and not any(path == one or path.startswith(f"{one}.") for one in left)
    }
    if not layers:
        raise SourceError(
            f"{loaded.source!r} ({type(module).__name__}) has no linear layer to quantise: heads and new modules stay "
            "as they are, and only torch's nn.Linear with float weights is quantised. Shorten model.loader.skip, or "
            "leave the model as it is with loader auto."
        )
    return layers
