"""Generation figures against sacrebleu and rouge-score."""

import json
import math

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from tiny import CORPUS

from ftengine.api import EvaluationContext, Judgement
from ftengine.errors import RecipeError
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.resampling import poisson_weights
from ftengine_builtins.evaluators import generation
from ftengine_builtins.evaluators.generation import Generation, GenerationConfig

B = 20
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


def accumulate(answers, references, config=None, resamples=B):
    accumulator = Accumulator(
        [Generation(config)], EvaluationContext("causal-lm"), resamples, predicts=Generation.reads
    )
    for index, (ours, theirs) in enumerate(zip(answers, references, strict=True)):
        accumulator.update(index, {"completion": ours, "reference": theirs})
    return accumulator


def same_as_sacrebleu(answers, references, figures, tokens="13a"):
    bleu = sacrebleu.corpus_bleu(answers, [references], tokenize=tokens, force=True).score
    assert figures["bleu"] == pytest.approx(bleu, rel=1e-12, abs=1e-12)
    assert figures["chrf"] == pytest.approx(sacrebleu.corpus_chrf(answers, [references]).score, rel=1e-12)


@pytest.mark.parametrize("tokens", ["13a", "intl", "char", "zh", "none"])
def test_bleu_and_chrf_equal_sacrebleus_on_the_corpus(tokens):
    answers, references = rewritten()
    figures = accumulate(answers, references, GenerationConfig(bleu_tokens=tokens)).figures()
    assert 20 < figures["bleu"].value < 95
    same_as_sacrebleu(answers, references, {name: figure.value for name, figure in figures.items()}, tokens)


def test_bleu_and_chrf_of_resamples_equal_sacrebleus_on_the_repeated_examples():
    answers, references = rewritten()
    figures = accumulate(answers, references).figures()
    weights = poisson_weights(0, range(len(answers)), B).astype(int)
    for k, column in enumerate(weights.T):
        rows = np.repeat(np.arange(len(answers)), column)
        ours, theirs = [answers[i] for i in rows], [references[i] for i in rows]
        same_as_sacrebleu(ours, theirs, {name: figure.resampled[k] for name, figure in figures.items()})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), min_size=1, max_size=4))
def test_bleu_and_chrf_of_any_text_equal_sacrebleus(pairs):
    answers, references = map(list, zip(*pairs, strict=True))
    evaluator = Generation()
    sums = np.sum([evaluator.statistics({"completion": a, "reference": r}) for a, r in pairs], axis=0)
    same_as_sacrebleu(answers, references, evaluator.metrics(sums))


def test_rouge_is_the_mean_of_rouge_scores():
    answers, references = rewritten()
    figures = accumulate(answers, references).figures()
    scores = [RougeScorer(["rouge1", "rouge2", "rougeL"]).score(r, a) for a, r in zip(answers, references, strict=True)]
    for name in ("rouge1", "rouge2", "rougeL"):
        assert figures[name].value == pytest.approx(np.mean([s[name].fmeasure for s in scores]), rel=1e-12)


def test_exact_match_and_f1_forgive_case_articles_and_punctuation():
    figures = accumulate(["The Fox!", "a red fox", "no"], ["fox", "red dog", "yes"]).figures()
    assert figures["exact_match"].value == pytest.approx(1 / 3)
    assert figures["token_f1"].value == pytest.approx((1 + 0.5 + 0) / 3)


def test_nothing_hostile_breaks_a_figure():
    answers = [a for a in HOSTILE for _ in HOSTILE]
    references = HOSTILE * len(HOSTILE)
    accumulator = accumulate(answers, references)
    figures = {name: figure.value for name, figure in accumulator.figures().items()}
    assert all(math.isfinite(value) for value in figures.values())
    same_as_sacrebleu(answers, references, figures)
    json.dumps(accumulator.details(), allow_nan=False)


def test_empty_answers_score_nothing():
    results = accumulate([""] * 10, ["some words here"] * 10).results()
    assert {metric.value for metric in results.values()} == {0}


@pytest.mark.parametrize(("answer", "value"), [("some words here", 1), ("nothing", 0)])
def test_all_right_and_all_wrong_keep_an_interval(answer, value):
    results = accumulate([answer] * 20, ["some words here"] * 20, resamples=500).results()
    for name in ("exact_match", "token_f1", "rouge1", "rouge2", "rougeL"):
        assert results[name].value == value
        assert results[name].high - results[name].low == pytest.approx(0.161, abs=5e-4)  # Wilson's of 20


def test_an_example_without_reference_is_left_out():
    answers, references = rewritten()
    with_gap = accumulate([*answers, "anything"], [*references, None])
    assert {k: f.value for k, f in with_gap.figures().items()} == {
        k: f.value for k, f in accumulate(answers, references).figures().items()
    }
    assert with_gap.details()["generation"]["references"] == len(answers)
    nothing = accumulate(["a", "b"], [None, None]).figures()
    assert all(math.isnan(figure.value) for figure in nothing.values())


def test_details_tell_how_long_answers_are():
    details = accumulate(["one two", "three"], ["one", "two three four five"]).details()["generation"]
    assert details == {"references": 2, "length_ratio": 0.6, "words": 1.5, "reference_words": 2.5}


def test_sums_of_two_processes_equal_one_pass():
    answers, references = rewritten()
    parts = [accumulate([], []) for _ in range(2)]
    for i, (ours, theirs) in enumerate(zip(answers, references, strict=True)):
        parts[i % 2].update(i, {"completion": ours, "reference": theirs})
    parts[0].merge(parts[1])
    whole = accumulate(answers, references)
    assert parts[0].sums()["generation"] == pytest.approx(whole.sums()["generation"], rel=1e-12)


def test_an_answer_is_judged_by_its_words():
    evaluator = Generation()
    assert evaluator.judge({"completion": "a red fox", "reference": "red dog"}) == Judgement(0.5, False)
    assert evaluator.judge({"completion": "Red fox.", "reference": "red fox"}) == Judgement(1.0, True)
    assert evaluator.judge({"completion": "red", "reference": None}) is None


def test_without_sacrebleu_it_is_refused_early(monkeypatch):
    monkeypatch.setattr(generation, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'ftengine\[generation\]'"):
        Generation()


def test_it_asks_for_its_answers_length():
    assert Generation(GenerationConfig(max_new_tokens=7)).generation == {"max_new_tokens": 7}
