"""Figures of generated answers against references."""

import math
from collections import Counter
from functools import cached_property
from importlib.util import find_spec
from typing import Literal

import numpy as np
from pydantic import Field

from ftengine import api
from ftengine.api import Baseline, ExampleScores
from ftengine.errors import RecipeError
from ftengine.text import redact
from ftengine_builtins.evaluators.base import WeightedEvaluator, higher, share
from ftengine_builtins.evaluators.overlap import normalized, rouge_l, rouge_n, rouge_words, token_f1
from ftengine_builtins.evaluators.weighted import (
    finite_or_none,
    mean_of_finite,
    means,
    numbers,
    ratio,
    totals,
    trials_of_means,
)

BLEU_ORDER, CHRF_ORDER = 4, 6
MEANS = ("exact_match", "token_f1", "rouge1", "rouge2", "rougeL")
CONSTANT = ("exact_match", "token_f1")
CANDIDATES, SAMPLED = 20, 1000
"""References that are tried as a constant answer, the most frequent ones, and examples that they are measured on."""
BETA = 2
"""chrF's weight of recall (Popović 2016, aclanthology.org/W16-2341)."""


class Generation(WeightedEvaluator):
    """Exact match, token F1, ROUGE, BLEU and chrF of greedy answers against references.

    Exact match and token F1 are taken after SQuAD's normalisation: lower case, no ASCII punctuation, no English
    articles, single spaces (Rajpurkar et al. 2016, arXiv:1606.05250). ROUGE-1, -2 and -L are F1 over words in lower
    case without stemming (Lin 2004, aclanthology.org/W04-1013); for ASCII text they equal Google's rouge-score.
    These five are means over examples, from 0 to 1. BLEU and chrF are those of the whole corpus, from 0 to 100, and
    equal sacrebleu's corpus_bleu and corpus_chrf with default settings (Post 2018, arXiv:1804.08771; they need
    `pip install 'ftengine[generation]'`). Examples without a reference are left out. The details hold how many
    words answers have for each word of the references (`length_ratio`), sacrebleu's brevity penalty among them.
    """

    name = "generation"

    class Config(api.Config):
        max_new_tokens: int = Field(128, ge=1, description="longest answer in tokens")
        bleu_tokens: Literal["13a", "intl", "zh", "char", "none"] = Field(
            "13a", description="sacrebleu's tokenisation for BLEU; intl for other scripts, zh for Chinese"
        )

    reads = frozenset({"completion", "reference"})
    metrics = {  # noqa: RUF012
        "exact_match": share(
            "exact match", "Share of the answers that equal the reference, but for case, punctuation and articles."
        ),
        "token_f1": higher("token F1", "Overlap of the answer's words with the reference's, 0 to 1.", primary=True),
        "rouge1": higher("ROUGE-1", "Overlap of single words with the reference, 0 to 1."),
        "rouge2": higher("ROUGE-2", "Overlap of pairs of neighbouring words, 0 to 1."),
        "rougeL": higher("ROUGE-L", "Overlap of the longest sequence of words that both have, 0 to 1."),
        "bleu": higher(
            "BLEU", "Share of the word sequences that the references have too, over the whole set, 0 to 100."
        ),
        "chrf": higher("chrF", "Overlap of character sequences with the references, over the whole set, 0 to 100."),
    }

    def __init__(self, config=None):
        super().__init__(config)
        if find_spec("sacrebleu") is None:
            raise RecipeError(
                "evaluator 'generation' needs sacrebleu, which is not installed. "
                "Run: pip install 'ftengine[generation]', or take it out of recipe key 'evaluate'."
            )
        self.generation = {"max_new_tokens": self.config.max_new_tokens}

    def keep(self, prediction):
        """Return the means' values, the words of answer and reference (nan without one), BLEU's and chrF's counts.

        For BLEU: two lengths, 4 n-gram matches and 4 n-gram totals; for chrF: for each of 6 orders the n-grams of
        answer, reference and both. All 0 without a reference.
        """
        ours, theirs = prediction["completion"], prediction["reference"]
        if theirs is None:
            nothing = dict.fromkeys((*MEANS, "words", "reference_words"), math.nan)
            return {**nothing, "bleu": [0.0] * (2 + 2 * BLEU_ORDER), "chrf": [0.0] * 3 * CHRF_ORDER}
        words, wanted = rouge_words(ours), rouge_words(theirs)
        score = self._bleu.corpus_score([ours], [[theirs]])
        return {
            "exact_match": float(normalized(ours) == normalized(theirs)),
            "token_f1": token_f1(ours, theirs),
            "rouge1": rouge_n(words, wanted, 1),
            "rouge2": rouge_n(words, wanted, 2),
            "rougeL": rouge_l(words, wanted),
            "words": float(len(ours.split())),
            "reference_words": float(len(theirs.split())),
            "bleu": [float(x) for x in (score.sys_len, score.ref_len, *score.counts, *score.totals)],
            "chrf": chrf_counts(ours, theirs),
        }

    def score_resamples(self, rows, weights):
        columns = means(weights, *(rows[name] for name in MEANS))
        counts = totals(weights, numbers(rows["bleu"]), numbers(rows["chrf"]))
        bleu, chrf = np.split(counts, [2 + 2 * BLEU_ORDER], axis=1)
        there = ~np.isnan(columns[:, 0])
        return {
            **dict(zip(MEANS, columns.T, strict=True)),
            "bleu": np.where(there, bleu_score(bleu), np.nan),
            "chrf": np.where(there, chrf_score(chrf), np.nan),
        }

    def trials(self, rows):
        return trials_of_means(rows, {name: self.metrics[name] for name in MEANS})

    def score_examples(self, rows):
        """Score token F1; right where the answer matches exactly after normalisation."""
        return ExampleScores(np.asarray(rows["token_f1"]), np.asarray(rows["exact_match"]))

    def details(self, rows, estimate):
        """Yield the number of references, the answers' relative length, and the figures of one constant answer."""
        words, wanted = (mean_of_finite(rows[name]) for name in ("words", "reference_words"))
        yield "references", int((~np.isnan(rows["exact_match"])).sum())
        yield "length_ratio", finite_or_none(ratio(words, wanted))
        yield "words", finite_or_none(words)
        yield "reference_words", finite_or_none(wanted)
        if (baseline := constant_text(rows["completion"], rows["reference"])) is not None:
            yield baseline.fact()

    def baseline_resamples(self, rows, weights):
        constant = always(rows["reference"])
        return {} if constant is None else dict(zip(CONSTANT, means(weights, *constant[1]).T, strict=True))

    @cached_property
    def _bleu(self):
        from sacrebleu.metrics import BLEU

        return BLEU(tokenize=self.config.bleu_tokens, force=True)


def constant_text(completions, references):
    """Return the figures of the best reference as constant answer; None with fewer than two references."""
    pairs = [(ours, theirs) for ours, theirs in zip(completions, references, strict=True) if theirs is not None]
    if (best := always(references)) is None:
        return None
    text, columns = best
    answers, wanted = Counter(ours for ours, _ in pairs), Counter(theirs for _, theirs in pairs)
    most, count = answers.most_common(1)[0]
    return Baseline(
        answer=redact(text),
        share=wanted.most_common(1)[0][1] / len(pairs),
        figures=dict(zip(CONSTANT, map(float, np.nanmean(columns, axis=1)), strict=True)),
        given=redact(most),
        count=count,
        total=len(pairs),
        unit="prompt",
    )


def always(references):
    """Return the best reference as a constant answer, and (2, n) of `CONSTANT`; None with fewer than two.

    The most frequent ones are tried. An example that equals the constant by being its source is nan, and so are those
    without a reference.
    """
    there = [text for text in references if text is not None]
    if len(there) < 2:
        return None
    sample = Counter(there[:: math.ceil(len(there) / SAMPLED)])

    def reached(text):
        exact = sum(times for other, times in sample.items() if normalized(text) == normalized(other))
        return sum(times * token_f1(text, other) for other, times in sample.items()), exact

    text = max((text for text, _ in sample.most_common(CANDIDATES)), key=reached)
    known = {other: (float(normalized(text) == normalized(other)), token_f1(text, other)) for other in set(there)}
    columns = np.array([known.get(other, (math.nan, math.nan)) for other in references]).T
    columns[:, list(references).index(text)] = math.nan
    return text, columns


def bleu_score(sums):
    """Return sacrebleu's corpus BLEU (B,) of summed counts (B, 10)."""
    from sacrebleu.metrics import BLEU

    scores = [
        BLEU.compute_bleu(
            row[2 : 2 + BLEU_ORDER], row[2 + BLEU_ORDER :], sys_len=row[0], ref_len=row[1], smooth_method="exp"
        ).score
        for row in np.rint(sums).astype(np.int64).tolist()
    ]
    return np.array(scores, dtype=np.float64)


def chrf_counts(ours, theirs):
    """Return, for character n-grams of order 1 to 6, those of the answer, of the reference, and of both.

    As in sacrebleu, white space does not count, nor do an answer's n-grams of an order that the reference lacks.
    """
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    counts = []
    for mine, other in zip(*(extract_all_char_ngrams(text, CHRF_ORDER) for text in (ours, theirs)), strict=True):
        counts += [float(mine.total() if other else 0), float(other.total()), float((mine & other).total())]
    return counts


def chrf_score(sums):
    """Return chrF from summed counts (B, 18): F2 of mean precision and recall over the orders that both have."""
    ours, theirs, both = np.moveaxis(sums.reshape(len(sums), CHRF_ORDER, 3), -1, 0)
    there = (ours > 0) & (theirs > 0)
    orders = there.sum(axis=-1)
    precision = ratio(np.where(there, ratio(both, ours), 0).sum(axis=-1), orders)
    recall = ratio(np.where(there, ratio(both, theirs), 0).sum(axis=-1), orders)
    score = ratio((1 + BETA**2) * precision * recall, BETA**2 * precision + recall)
    return 100 * np.nan_to_num(score)
