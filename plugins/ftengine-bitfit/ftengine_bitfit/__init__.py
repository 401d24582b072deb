"""BitFit: the biases train, everything else stays."""

from __future__ import annotations

from pydantic import Field

from ftengine import api, hookimpl
from ftengine.errors import NoMatch, did_you_mean


class BitFit(api.Strategy):
    """Train the biases alone (BitFit, Ben Zaken et al. 2021, arXiv:2106.10199)."""

    name = "bitfit"
    citation = "Ben Zaken et al. 2021, BitFit, arXiv:2106.10199"

    class Config(api.Config):
        ends: list[str] = Field(["bias"], min_length=1, description="how the names of the parameters that train end")

    def prepare(self, loaded: api.LoadedModel) -> None:
        names = [name for name, _ in loaded.module.named_parameters()]
        self.chosen = {end: [name for name in names if name.endswith(end)] for end in self.config.ends}
        for end, found in self.chosen.items():
            if not found:
                known = sorted({name.rpartition(".")[2] for name in names})
                raise NoMatch(
                    f"strategy.ends: no parameter of {type(loaded.module).__name__} ends in {end!r}. "
                    f"Its parameters end in {', '.join(known)}.{did_you_mean(end, known)}"
                )
        for name, parameter in loaded.module.named_parameters():
            parameter.requires_grad_(name.endswith(tuple(self.config.ends)))

    def matches(self) -> dict[str, list[str]]:
        return {end: [name.rpartition(".")[0] for name in found] for end, found in self.chosen.items()}

    def check_merge(self) -> None:
        """Nothing to refuse."""

    def merge(self, loaded: api.LoadedModel) -> None:
        """Nothing to do: the trained biases are the base's own."""


@hookimpl
def ftengine_strategies() -> list[type[api.Strategy]]:
    return [BitFit]
