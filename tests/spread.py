"""A strategy that brings a regularizer, as a third party writes it: public names only."""

import torch
from pydantic import Field

from ftengine.api import Config, Regularizer, Strategy
from ftengine.errors import NoMatch, RecipeError
from ftengine.model import trainable


class Spread(Strategy):
    """Train biases, and pull each towards how large its gradients were so far."""

    name = "spread"

    class Config(Config):
        """How hard, and from when on."""

        weight: float = Field(0.1, ge=0, description="of the penalty")
        wait: int = Field(1, ge=0, description="steps before there is one")

    def prepare(self, loaded):
        for name, parameter in loaded.module.named_parameters():
            parameter.requires_grad_(name.endswith(".bias"))
        if not trainable(loaded.module):
            raise NoMatch("strategy spread trains biases, and this model has none.")

    def regularizer(self, steps):
        if steps <= self.config.wait:
            raise RecipeError(f"strategy spread waits for {self.config.wait} steps, and the run has {steps}.")
        return TowardsGradients(self.config)


class TowardsGradients(Regularizer):
    """The penalty, and the mean size of gradients, which checkpoints hold."""

    def __init__(self, config):
        super().__init__(config)
        self.sizes, self.steps = {}, torch.zeros(())

    def penalty(self, model, batch, loss):
        if self.steps < self.config.wait:
            return None
        far = [(p - self.sizes[name]).square().mean() for name, p in trainable(model).items() if name in self.sizes]
        return self.config.weight * torch.stack(far).mean()

    def on_step_end(self, model, step):
        self.steps += 1
        for name, parameter in trainable(model).items():
            if parameter.grad is not None:
                self.sizes[name] = 0.9 * self.sizes.get(name, 0.0) + 0.1 * parameter.grad.abs().mean()

    def state_dict(self):
        return {**self.sizes, "steps": self.steps}

    def load_state_dict(self, tensors):
        self.sizes = dict(tensors)
        self.steps = self.sizes.pop("steps")
