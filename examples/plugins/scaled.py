"""A strategy that adds modules, with frozen random A and B of each layer and a trained d between them.

- Exchange modules inside of `loaded.module` and do not put another object in its place: tasks call its methods, such
  as `generate`, and read its `config`.
- A layer that takes another's place keeps `weight` and `bias`, as the same parameters under the same names.
- `loaded.new_modules` has the paths of modules that train whole anyway, such as a fresh head: leave them out, since
  `lowrank_linear` refuses an update beside a weight that trains.
- Frozen random tensors are buffers. A checkpoint holds trainable parameters, and the persistent buffers of modules that
  have such a parameter of their own; whatever else `prepare` draws is drawn again, from the generator that the recipe
  seeds, so that another device or version of torch may draw others. What all layers share is registered in each.
- A layer returns its input's dtype, as `lowrank_linear` does: what trains is float32 and what is frozen often bfloat16.
- New tensors are made on the layer's device, in float32. `prepare` sees a model on the meta device first.
"""

import torch
from pydantic import Field
from torch import nn

from ftengine.api import Config, Strategy
from ftengine.errors import NoMatch
from ftengine.ops import lowrank_linear


class ScaledLinear(nn.Module):
    """A frozen linear layer with a trained scaling of a random low-rank update."""

    def __init__(self, linear, rank):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias  # under the names that the base has
        (n, k), device = linear.weight.shape, linear.weight.device
        self.register_buffer("a", torch.randn(rank, k, device=device) / k**0.5)
        self.register_buffer("b", torch.randn(n, rank, device=device) / rank**0.5)
        self.d = nn.Parameter(torch.zeros(rank, device=device))  # zero: nothing changes before training

    def forward(self, x):
        return lowrank_linear(x, self.weight, self.bias, self.a, self.b, 1.0, diagonal=self.d)


class Scaled(Strategy):
    """Train a scaling of random low-rank updates of all linear layers but the head."""

    name = "scaled"

    class Config(Config):
        rank: int = Field(8, ge=1, le=256, description="of the random updates")

    def prepare(self, loaded):
        loaded.module.requires_grad_(False)
        heads = tuple(f"{path}." for path in loaded.new_modules)
        layers = {path: layer for path, layer in loaded.module.named_modules() if type(layer) is nn.Linear}
        self.paths = [path for path in layers if not f"{path}.".startswith(heads)]
        if not self.paths:
            raise NoMatch(f"strategy scaled finds no linear layer in {type(loaded.module).__name__}.")
        for path in self.paths:
            loaded.module.set_submodule(path, ScaledLinear(layers[path], self.config.rank))

    def matches(self):
        return {"linear layers": self.paths}
