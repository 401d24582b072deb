"""Train the biases alone."""

from ftengine import api
from ftengine.errors import NoMatch, did_you_mean
from pydantic import Field


class BitfitStrategy(api.Strategy):
    """Train the biases alone (BitFit, Ben Zaken et al. 2021)."""

    name = "bitfit"
    traits = api.StrategyTraits(supports_sharding=True, learning_rate=1.0e-3)
    paper = "Ben Zaken et al. 2021, BitFit: Simple Parameter-efficient Fine-tuning, arXiv:2106.10199"

    class Config(api.Config):
        """What a recipe may set."""

        endings: list[str] = Field(["bias"], min_length=1, description="endings of the names of trained parameters")

    def prepare(self, loaded: api.LoadedModel) -> None:
        """Let only the parameters train whose names end as the options say."""
        names = [name for name, _ in loaded.module.named_parameters()]
        self._chosen = {end: [name for name in names if name.endswith(end)] for end in self.config.endings}
        for end, chosen in self._chosen.items():
            if not chosen:
                known = sorted({name.rpartition(".")[2] for name in names})
                raise NoMatch(
                    f"strategy.endings: no parameter of {type(loaded.module).__name__} ends in {end!r}. "
                    f"Its parameters end in {', '.join(known)}.{did_you_mean(end, known)}"
                )
        for name, parameter in loaded.module.named_parameters():
            parameter.requires_grad_(name.endswith(tuple(self.config.endings)))

    def matches(self) -> dict[str, list[str]]:
        """Return the modules of the chosen parameters, for `ftengine plan`."""
        return {end: [name.rpartition(".")[0] for name in chosen] for end, chosen in self._chosen.items()}

    def merge(self, loaded: api.LoadedModel) -> None:
        """Do nothing: the trained biases are the base's own."""
