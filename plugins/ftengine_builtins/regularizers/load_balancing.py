"""Load balancing: the loss that keeps the router of a mixture from sending most tokens to few experts."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from ftengine import api
from ftengine.api import Batch, LoadedModel, Regularizer, RegularizerTraits, Task
from ftengine_builtins.strategies.routing import RouterLosses


class LoadBalancing(Regularizer):
    """Spread the tokens of a mixture over its experts (Fedus et al. 2021), as transformers' own loss does.

    coefficient E Σ_e f_e p_e is added to the loss, where f_e is how often a token chooses expert e and p_e its mean
    probability, over all layers and tokens but padding (arXiv:2101.03961, eq. 4); and z_coefficient times the mean
    squared logarithm of the sum of exp(logits) (arXiv:2202.08906, eq. 5). As in transformers, f and p are those of a
    micro-batch. Models without `router_aux_loss_coef`, such as DeepSeek-V3, have no such loss.
    """

    name = "load-balancing"
    traits = RegularizerTraits(supports_sharding=True, by_tokens=True)
    paper = "Fedus et al. 2021, Switch Transformers: Scaling to Trillion Parameter Models, arXiv:2101.03961"

    class Config(api.Config):
        coefficient: float | None = Field(
            None, ge=0, description="weight of the loss; null: router_aux_loss_coef of the model's configuration"
        )
        z_coefficient: float | None = Field(
            None, ge=0, description="weight of the z-loss; null: router_z_loss_coef of the configuration, if it has one"
        )

    _losses: RouterLosses | None = None

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        self._losses = RouterLosses(loaded.module, self.config.coefficient, self.config.z_coefficient)

    def penalty(self, model: nn.Module, batch: Batch, loss: Tensor) -> Tensor | None:
        return None if self._losses is None else self._losses.take()

    def detach(self, loaded: LoadedModel) -> None:
        if self._losses is not None:
            self._losses.remove()
        self._losses = None
