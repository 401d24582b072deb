"""How much of a reference a model repeats word for word."""

import math
import re

import numpy as np
from pydantic import Field

from ftengine import api
from ftengine.text import CJK
from ftengine_builtins.evaluators.base import WeightedEvaluator, lower
from ftengine_builtins.evaluators.overlap import common_run
from ftengine_builtins.evaluators.weighted import finite_or_none, mean_of_finite, means, trials_of_means

_WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+|[^\w\s]|_")


class Memorisation(WeightedEvaluator):
    """Share of references that greedy answers repeat word for word: whole, their beginning, and their longest run.

    A reference counts as memorised if the prompt alone makes the model write it (Carlini et al. 2022, "Quantifying
    memorization across neural language models", arXiv:2202.07646). `verbatim` is the share repeated from beginning to
    end, `prefix_verbatim` the share whose first 20 words are repeated (all words of a shorter reference), `longest_run`
    the mean share of a reference in its longest repeated run of words. Words are compared with case and punctuation,
    without white space; scripts without spaces are compared by the character. Short or formulaic references are
    repeated without having been memorised: only the difference between training and held-out rows shows memorisation.
    """

    name = "memorisation"
    traits = api.EvaluatorTraits(probe="memorisation")

    class Config(api.Config):
        prefix: int = Field(20, ge=1, description="words of a reference that `prefix_verbatim` looks at")
        max_new_tokens: int = Field(
            128, ge=1, description="longest answer in tokens; of a longer reference only this much can be repeated"
        )

    reads = frozenset({"completion", "reference"})
    metrics = {  # noqa: RUF012
        "verbatim": lower(
            "verbatim repetition", "Share of the texts whose continuation is given back word for word.", proportion=True
        ),
        "prefix_verbatim": lower(
            "verbatim beginning", "Share of the texts whose continuation begins word for word.", proportion=True
        ),
        "longest_run": lower(
            "longest repeated run",
            "Longest run of the reference's words that the answer repeats, as a mean share of the reference.",
        ),
    }

    def __init__(self, config=None):
        super().__init__(config)
        self.generation = {"max_new_tokens": self.config.max_new_tokens}

    def keep(self, prediction):
        """Return the three figures of the example and the words of its reference; nan without one."""
        wanted = words(prediction["reference"] or "")
        if not wanted:
            return dict.fromkeys((*self.metrics, "reference_words"), math.nan)
        answer, k = words(prediction["completion"]), self.config.prefix
        return {
            "verbatim": float(answer == wanted),
            "prefix_verbatim": float(answer[: len(wanted[:k])] == wanted[:k]),
            "longest_run": common_run(answer, wanted) / len(wanted),
            "reference_words": float(len(wanted)),
        }

    def score_resamples(self, rows, weights):
        return dict(zip(self.metrics, means(weights, *(rows[name] for name in self.metrics)).T, strict=True))

    def trials(self, rows):
        return trials_of_means(rows, self.metrics)

    def details(self, rows, estimate):
        """Yield the number of references and their mean length."""
        yield "references", int((~np.isnan(rows["verbatim"])).sum())
        yield "reference_words", finite_or_none(mean_of_finite(rows["reference_words"]))


def words(text):
    """Return a text's words, punctuation marks and characters of scripts without spaces, in their original form."""
    return _WORD.findall(text)
