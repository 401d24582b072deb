"""How much of what a model was to answer it repeats word for word."""

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
    """Share of references that greedy answers reproduce word for word: whole, their beginning, and in the longest run.

    A reference counts as memorised when the prompt alone makes the model write it (Carlini et al. 2022, "Quantifying
    memorization across neural language models", arXiv:2202.07646). `verbatim` is the share reproduced from beginning to
    end, `prefix_verbatim` the share of which the first 20 words are (all of a shorter reference), `longest_run`
    the mean share of the reference that its longest run of words in the answer makes up. Words are compared with
    case and punctuation, white space is not; scripts without spaces are compared by the character. A short or
    formulaic reference is reproduced without having been memorised: only the difference between training rows and
    held-out rows says that something was.
    """

    name = "memorisation"
    traits = api.EvaluatorTraits(probe="memorisation")

    class Config(api.Config):
        prefix: int = Field(20, ge=1, description="words of a reference that `prefix_verbatim` looks at")
        max_new_tokens: int = Field(
            128, ge=1, description="longest answer in tokens; of a longer reference no more can be repeated"
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
        said, k = words(prediction["completion"]), self.config.prefix
        return {
            "verbatim": float(said == wanted),
            "prefix_verbatim": float(said[: len(wanted[:k])] == wanted[:k]),
            "longest_run": common_run(said, wanted) / len(wanted),
            "reference_words": float(len(wanted)),
        }

    def score_resamples(self, rows, weights):
        return dict(zip(self.metrics, means(weights, *(rows[name] for name in self.metrics)).T, strict=True))

    def trials(self, rows):
        return trials_of_means(rows, self.metrics)

    def details(self, rows, estimate):
        """Yield how many examples have a reference, and how long those are."""
        yield "references", int((~np.isnan(rows["verbatim"])).sum())
        yield "reference_words", finite_or_none(mean_of_finite(rows["reference_words"]))


def words(text):
    """Return a text's words, punctuation marks and characters of scripts without spaces, as they are written."""
    return _WORD.findall(text)
