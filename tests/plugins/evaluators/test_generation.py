"""Generation figures against sacrebleu and rouge-score."""

import math

import numpy as np
import pytest
import sacrebleu
from expected import raises
from rouge_score.rouge_scorer import RougeScorer
from tiny import CORPUS

from ftengine.errors import RecipeError
from ftengine_builtins.evaluators import generation
from ftengine_builtins.evaluators.generation import MEANS, Generation

HOSTILE = [
    "",
    " ",
    "\n\t",
    "🙂👩‍👩‍👧",
    "שלום עולם",
    "‮evil‬",
    "\x00",
    "<script>alert(1)</script>",
    "a" * 300,
    "日本語のテキスト。",
]


def rewritten(seed=0):
    """References, and answers that leave out, double and swap their words."""
    rng = np.random.default_rng(seed)
    answers, references = [], []
    for line in CORPUS * 3:
        words = line.split()
        kept = [w for w in words for _ in range(rng.choice([0, 1, 1, 1, 2]))]
        if rng.random() < 0.3:
            rng.shuffle(kept)
        answers.append(" ".join(kept) if rng.random() < 0.8 else line)
        references.append(line)
    return answers, references


def predictions(answers, references):
    return [{"completion": ours, "reference": theirs} for ours, theirs in zip(answers, references, strict=True)]


def same_as_sacrebleu(answers, references, scores, tokens="13a"):
    bleu = sacrebleu.corpus_bleu(answers, [references], tokenize=tokens, force=True).score
    assert scores["bleu"] == pytest.approx(bleu, rel=1e-12, abs=1e-12)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(answers, [references]).score, rel=1e-12)


@pytest.mark.parametrize("tokens", ["13a", "intl", "char", "zh", "none"])
def test_bleu_and_chrf_equal_sacrebleus_on_the_corpus(scored, tokens):
    answers, references = rewritten()
    found = scored(Generation(Generation.Config(bleu_tokens=tokens)), predictions(answers, references))
    assert 20 < found.scores["bleu"] < 95
    same_as_sacrebleu(answers, references, found.scores, tokens)
    for rows, values in found.resamples(10):
        same_as_sacrebleu([answers[i] for i in rows], [references[i] for i in rows], values, tokens)


def test_rouge_is_the_mean_of_rouge_scores(scored):
    answers, references = rewritten()
    found = scored(Generation(), predictions(answers, references)).scores
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    expected = [scorer.score(theirs, ours) for ours, theirs in zip(answers, references, strict=True)]
    for name in ("rouge1", "rouge2", "rougeL"):
        assert found[name] == pytest.approx(np.mean([one[name].fmeasure for one in expected]))


def test_exact_match_and_f1_forgive_case_articles_and_punctuation(scored):
    found = scored(Generation(), predictions(["The Fox!", "a red fox", "no"], ["fox", "red dog", "yes"]))
    assert found.scores["exact_match"] == pytest.approx(1 / 3)
    assert found.scores["token_f1"] == pytest.approx((1 + 0.5 + 0) / 3)
    examples = found.evaluator.score_examples(found.rows)
    assert (examples.score.tolist(), examples.right.tolist()) == ([1, 0.5, 0], [1, 0, 0])


def test_nothing_hostile_breaks_a_figure(scored):
    answers, references = [a for a in HOSTILE for _ in HOSTILE], HOSTILE * len(HOSTILE)
    scores = scored(Generation(), predictions(answers, references)).scores
    assert all(math.isfinite(value) for value in scores.values())
    same_as_sacrebleu(answers, references, scores)


@pytest.mark.parametrize(("answer", "value"), [("some words here", 1), ("", 0)])
def test_means_that_are_the_same_everywhere_are_taken_for_proportions(scored, answer, value):
    found = scored(Generation(), predictions([answer] * 20, ["some words here"] * 20))
    assert {found.scores[name] for name in MEANS} == {value}
    assert found.evaluator.trials(found.rows) == dict.fromkeys(MEANS, 20)
    mixed = scored(Generation(), predictions(*rewritten()))
    assert mixed.evaluator.trials(mixed.rows) == {"exact_match": mixed.n}


def test_an_example_without_reference_is_left_out(scored):
    answers, references = rewritten()
    found = scored(Generation(), predictions([*answers, "anything"], [*references, None]))
    assert found.scores == pytest.approx(scored(Generation(), predictions(answers, references)).scores)
    assert found.details()[0]["references"] == len(answers)
    assert math.isnan(found.evaluator.score_examples(found.rows).score[-1])
    nothing = scored(Generation(), predictions(["a", "b"], [None, None]))
    assert all(math.isnan(score) for score in nothing.scores.values())
    assert nothing.details()[0] == {"references": 0, "length_ratio": None, "words": None, "reference_words": None}


def test_the_baseline_is_the_best_reference_for_all_measured_on_the_others(scored):
    references = ["a red fox", "the red fox", "red fox runs", "blue"]
    told = scored(Generation(), predictions(["", "", "x", ""], references)).details()[0]["baseline"]
    assert told["answer"] == "a red fox"
    assert told["figures"] == {"token_f1": pytest.approx((1 + 0.8 + 0) / 3), "exact_match": pytest.approx(1 / 3)}
    assert (told["given"], told["count"], told["total"], told["share"]) == ("", 3, 4, 0.25)


def test_without_sacrebleu_it_is_refused_early(monkeypatch):
    monkeypatch.setattr(generation, "find_spec", lambda name: None)
    with raises(RecipeError, "ftengine[generation]"):
        Generation()
