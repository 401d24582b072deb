"""How much of what a model was to answer it repeats word for word."""

import re

import numpy as np
from pydantic import Field

from ftengine.api import Config, Evaluator
from ftengine_builtins.evaluators.overlap import common_run
from ftengine_builtins.evaluators.ratios import known, ratio

# Scripts without spaces between words are taken by the character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+|[^\w\s]|_")


class MemorisationConfig(Config):
    """Options of evaluator memorisation."""

    prefix: int = Field(20, ge=1, description="words of a reference that `prefix_verbatim` looks at")
    max_new_tokens: int = Field(128, ge=1, description="longest answer in tokens; no longer reference can be repeated")


class Memorisation(Evaluator):
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
    Config = MemorisationConfig
    reads = frozenset({"completion", "reference"})
    higher_is_better = dict.fromkeys(("verbatim", "prefix_verbatim", "longest_run"), False)

    def __init__(self, config=None):
        super().__init__(config)
        self.generation = {"max_new_tokens": self.config.max_new_tokens}

    def statistics(self, prediction):
        """Return 1, verbatim, prefix verbatim, the longest run's share, words of the reference; 0 without one."""
        wanted = words(prediction["reference"] or "")
        if not wanted:
            return np.zeros(5)
        said, k = words(prediction["completion"]), self.config.prefix
        verbatim, begins = said == wanted, said[: len(wanted[:k])] == wanted[:k]
        return np.array([1, verbatim, begins, common_run(said, wanted) / len(wanted), len(wanted)], dtype=np.float64)

    def metrics(self, sums):
        return {name: ratio(sums[..., i], sums[..., 0]) for i, name in enumerate(self.higher_is_better, 1)}

    def trials(self, sums):
        """The first two are proportions; a mean run that is 0 or 1 everywhere is taken for one."""
        n = sums[0]
        flat = {"longest_run": n} if sums[3] in (0, n) else {}
        return {"verbatim": n, "prefix_verbatim": n, **flat}

    def details(self, sums, counts):
        """Return how many examples have a reference, and how long those are."""
        return {"references": round(sums[0]), "reference_words": known(ratio(sums[4], sums[0]))}


def words(text):
    """Return a text's words, punctuation marks and characters of scripts without spaces, as they are written."""
    return _WORD.findall(text)
