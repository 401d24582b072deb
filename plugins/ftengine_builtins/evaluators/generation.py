"""Figures of generated answers against references."""

from importlib.util import find_spec
from typing import Literal

import numpy as np
from pydantic import Field

from ftengine.api import Config, Evaluator, Judgement
from ftengine.errors import RecipeError
from ftengine_builtins.evaluators.overlap import normalized, rouge_l, rouge_n, rouge_words, token_f1
from ftengine_builtins.evaluators.ratios import known, ratio

BLEU_ORDER, CHRF_ORDER = 4, 6
GRADED = ("token_f1", "rouge1", "rouge2", "rougeL")
BETA = 2
"""chrF's weight of recall (Popović 2016, aclanthology.org/W16-2341)."""


class GenerationConfig(Config):
    """Options of evaluator generation."""

    max_new_tokens: int = Field(128, ge=1, description="longest answer in tokens")
    bleu_tokens: Literal["13a", "intl", "zh", "char", "none"] = Field(
        "13a", description="sacrebleu's tokenisation for BLEU; intl for other scripts, zh for Chinese"
    )


class Generation(Evaluator):
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
    Config = GenerationConfig
    reads = frozenset({"completion", "reference"})
    higher_is_better = dict.fromkeys(("exact_match", *GRADED, "bleu", "chrf"), True)

    def __init__(self, config=None):
        super().__init__(config)
        if find_spec("sacrebleu") is None:
            raise RecipeError(
                "evaluator 'generation' needs sacrebleu, which is not installed. "
                "Run: pip install 'ftengine[generation]', or take it out of recipe key 'evaluate'."
            )
        self.generation = {"max_new_tokens": self.config.max_new_tokens}
        self._bleu = None

    def statistics(self, prediction):
        """Return 1, exact match, the graded figures, words and words of the reference, then BLEU's and chrF's counts.

        Those are BLEU's two lengths, 4 n-gram matches and 4 n-gram totals, and for chrF's 6 orders the n-grams of
        answer, reference and both. All are 0 without a reference.
        """
        ours, theirs = prediction["completion"], prediction["reference"]
        if theirs is None:
            return np.zeros(5 + len(GRADED) - 1 + 2 + 2 * BLEU_ORDER + 3 * CHRF_ORDER)
        words, wanted = rouge_words(ours), rouge_words(theirs)
        graded = [token_f1(ours, theirs), rouge_n(words, wanted, 1), rouge_n(words, wanted, 2), rouge_l(words, wanted)]
        plain = [1.0, float(normalized(ours) == normalized(theirs)), *graded, len(ours.split()), len(theirs.split())]
        return np.array([*plain, *self._bleu_counts(ours, theirs), *chrf_counts(ours, theirs)], dtype=np.float64)

    def judge(self, prediction):
        """Score token F1; right where the answer matches exactly after normalisation."""
        ours, theirs = prediction["completion"], prediction["reference"]
        if theirs is None:
            return None
        return Judgement(token_f1(ours, theirs), normalized(ours) == normalized(theirs))

    def metrics(self, sums):
        n, exact, *graded = (sums[..., i] for i in range(2 + len(GRADED)))
        counts = sums[..., 4 + len(GRADED) :]
        bleu_counts, chrf = np.split(counts, [2 + 2 * BLEU_ORDER], axis=-1)
        return {
            "exact_match": ratio(exact, n),
            **{name: ratio(total, n) for name, total in zip(GRADED, graded, strict=True)},
            "bleu": np.where(n > 0, _bleu(bleu_counts), np.nan),
            "chrf": np.where(n > 0, chrf_score(chrf), np.nan),
        }

    def trials(self, sums):
        """Exact match is a proportion; a mean that is 0 or 1 everywhere is taken for one, so that it has a width."""
        n = sums[0]
        flat = {name: n for i, name in enumerate(GRADED, 2) if sums[i] in (0, n)}
        return {"exact_match": n, **flat}

    def details(self, sums, counts):
        """Return the examples that have a reference, and the words of the answers for each of the references."""
        ours, theirs = sums[2 + len(GRADED)], sums[3 + len(GRADED)]
        return {
            "references": round(sums[0]),
            "length_ratio": known(ratio(ours, theirs)),
            "words": known(ratio(ours, sums[0])),
            "reference_words": known(ratio(theirs, sums[0])),
        }

    def _bleu_counts(self, ours, theirs):
        """Return the two lengths, 4 matches and 4 totals, as sacrebleu counts them."""
        from sacrebleu.metrics import BLEU

        if self._bleu is None:
            self._bleu = BLEU(tokenize=self.config.bleu_tokens, force=True)
        score = self._bleu.corpus_score([ours], [[theirs]])
        return [score.sys_len, score.ref_len, *score.counts, *score.totals]


def _bleu(sums):
    """Return sacrebleu's corpus BLEU of summed counts (..., 10)."""
    from sacrebleu.metrics import BLEU

    flat = np.rint(sums).astype(np.int64).reshape(-1, sums.shape[-1])
    scores = [
        BLEU.compute_bleu(
            row[2 : 2 + BLEU_ORDER], row[2 + BLEU_ORDER :], sys_len=row[0], ref_len=row[1], smooth_method="exp"
        ).score
        for row in flat.tolist()
    ]
    return np.array(scores, dtype=np.float64).reshape(sums.shape[:-1])


def chrf_counts(ours, theirs):
    """Return, for character n-grams of order 1 to 6, those of the answer, of the reference, and of both.

    As sacrebleu does, white space does not count, and an answer's n-grams of an order that the reference has none
    of do not count either.
    """
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    counts = []
    for mine, other in zip(*(extract_all_char_ngrams(text, CHRF_ORDER) for text in (ours, theirs)), strict=True):
        counts += [mine.total() if other else 0, other.total(), (mine & other).total()]
    return counts


def chrf_score(sums):
    """Return chrF from summed counts (..., 18): F2 of mean precision and recall over the orders that both have."""
    ours, theirs, both = np.moveaxis(sums.reshape(*sums.shape[:-1], CHRF_ORDER, 3), -1, 0)
    there = (ours > 0) & (theirs > 0)
    orders = there.sum(axis=-1)
    precision = ratio(np.where(there, ratio(both, ours), 0).sum(axis=-1), orders)
    recall = ratio(np.where(there, ratio(both, theirs), 0).sum(axis=-1), orders)
    score = ratio((1 + BETA**2) * precision * recall, BETA**2 * precision + recall)
    return 100 * np.nan_to_num(score)
