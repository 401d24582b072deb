"""Accuracy of short answers about pictures, by the normalisation of VQA."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import numpy as np

from ftengine.api import Evaluator, ExampleScores, Metric, Prediction, Rows

ARTICLES = re.compile(r"\b(a|an|the)\b")
NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
PUNCTUATION = re.compile(r"(?<!\d)[.,](?!\d)|(?<=\d)[.,](?!\d)|[;/\[\]\"{}()=+\\_<>@`?!:'’-]")


def normalised(answer: str) -> str:
    """Return an answer in lower case, without articles and punctuation, with digits for the words zero to ten.

    As the VQA benchmark compares answers (Antol et al. 2015, arXiv:1505.00468, https://visualqa.org/evaluation.html);
    apostrophes are left out in place of its table of contractions, and decimal points stay.
    """
    text = PUNCTUATION.sub(" ", answer.lower().replace("'", "").replace("’", ""))
    return " ".join(NUMBERS.get(word, word) for word in ARTICLES.sub(" ", text).split())


def accuracy(answer: str, references: list[str]) -> float:
    """Return VQA's accuracy: with at least three reference answers, the mean over leaving one out of min(equal / 3, 1).

    With fewer, 1 if one of them is equal, else 0.
    """
    own, right = normalised(answer), [normalised(reference) for reference in references]
    equal = sum(reference == own for reference in right)
    if len(right) < 3:
        return float(equal > 0)
    left_out = [min((equal - (reference == own)) / 3, 1.0) for reference in right]
    return sum(left_out) / len(left_out)


class VQA(Evaluator):
    """Scores short answers about pictures: VQA accuracy."""

    name = "vqa"
    reads = frozenset({"completion", "references"})
    metrics = {  # noqa: RUF012
        "vqa_accuracy": Metric(
            "VQA accuracy",
            higher_is_better=True,
            proportion=True,
            primary=True,
            meaning="Share of answers that equal a reference answer, without case, articles and punctuation; of "
            "several references, three have to agree for a full point.",
        )
    }

    def keep(self, prediction: Prediction) -> Mapping[str, float]:
        """Return the accuracy of an answer; nan where the row has no reference."""
        references = json.loads(prediction["references"])
        return {"accuracy": accuracy(prediction["completion"], references) if references else float("nan")}

    def score(self, rows: Rows, weights: np.ndarray) -> Mapping[str, float]:
        right = rows["accuracy"]
        known = ~np.isnan(right)
        total = weights[known].sum()
        return {"vqa_accuracy": float((right[known] * weights[known]).sum() / total) if total else float("nan")}

    def score_examples(self, rows: Rows) -> ExampleScores:
        right = rows["accuracy"]
        return ExampleScores(score=right, right=np.where(np.isnan(right), np.nan, np.round(right)))
