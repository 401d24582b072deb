"""Texts translated into another language and back, by two models that the user names."""

from functools import cached_property
from hashlib import blake2b
from typing import Any

from pydantic import Field, model_validator

from ftengine.api import RandomSource, TextAugmenter
from ftengine.errors import SourceError
from ftengine_builtins.augmenters.partial_config import PartialConfig

CACHED_TEXTS = 100_000
"""Back-translations kept in memory: 100 MB for texts of 1,000 characters."""


class BackTranslation(TextAugmenter):
    """Translate texts into another language and back, with models that you name.

    Texts are translated sentence by sentence; blanks and line breaks between sentences stay. A sentence that is too
    long for the models is cut at blanks. Each text has `variants` back-translations, which later epochs take again out
    of memory. The models are read when the first text is changed, and run beside the one that is trained.
    """

    name = "back-translation"
    paper = "Sennrich et al. 2016, arXiv:1511.06709; Edunov et al. 2018, arXiv:1808.09381 (drawing instead of beams)"

    class Config(PartialConfig):
        forward: str = Field(
            min_length=1,
            description="model that translates into the other language: a folder or hub id of an encoder-decoder",
        )
        backward: str = Field(
            min_length=1, description="model that translates back; may be the same one with another prefix"
        )
        forward_prefix: str = Field("", description="text in front of every sentence: 'translate English to German: '")
        backward_prefix: str = Field("", description="text in front of every sentence to translate back")
        temperature: float = Field(1.0, ge=0, description="sampling temperature; 0: the likeliest words")
        top_p: float = Field(0.9, gt=0, le=1, description="share of the distribution, likeliest first, to draw from")
        beams: int = Field(1, ge=1, description="width of the beam search; above 1 needs temperature: 0")
        variants: int = Field(4, ge=1, description="different back-translations of a text, after which they repeat")
        max_length: int | None = Field(
            None, ge=8, description="longest sentence in tokens; null: 256, or the models' limit if less"
        )
        device: str = Field(
            "auto", description="device of both models: cpu, cuda, cuda:1; auto: the GPU if there is one"
        )

        @model_validator(mode="after")
        def _one_way_to_choose(self) -> Any:
            if self.beams > 1 and self.temperature > 0:
                raise ValueError("beams above 1 search for the likeliest text; set temperature: 0 with them")
            return self

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._cache: dict[int, str] = {}  # the oldest first

    def check_options(self) -> None:
        """Check both models without reading weights (SourceError: missing, incomplete, or not an encoder-decoder)."""
        from ftengine_builtins.augmenters.translator import check_translator

        for option in ("forward", "backward"):
            try:
                check_translator(getattr(self.config, option))
            except SourceError as error:
                raise SourceError(f"augmenter {self.name!r}, option {option}: {error}") from None

    def change(self, text: str, rng: RandomSource) -> str:
        variant = rng.randrange(self.config.variants)
        # Beam search always gives the same back-translation.
        key = f"{variant if self.config.temperature else 0} {text}".encode("utf-8", "surrogatepass")
        seed = int.from_bytes(blake2b(key, digest_size=8).digest(), "big") >> 1  # 63 bits, the same in every process
        if seed not in self._cache:
            there, back = self._translators
            self._cache[seed] = back(there(text, seed), seed)
            if len(self._cache) > CACHED_TEXTS:
                del self._cache[next(iter(self._cache))]
        return self._cache[seed]

    @cached_property
    def _translators(self) -> tuple[Any, Any]:
        from ftengine_builtins.augmenters.translator import Translator, load_translator

        config = self.config
        there = load_translator(config.forward, config.device)
        back = there if config.backward == config.forward else load_translator(config.backward, config.device)
        return Translator(there, config.forward_prefix, config), Translator(back, config.backward_prefix, config)
