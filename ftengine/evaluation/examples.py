"""Single examples: those that one model got right and the other wrong, and the contents of examples.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ftengine.api import ExampleScores, overrides
from ftengine.data.encoding import EncodedSplit
from ftengine.evaluation.figures import ResampledFigure
from ftengine.evaluation.plan import EvalSet, answer_keys
from ftengine.evaluation.significance import PValue, mcnemar
from ftengine.evaluation.table import Predictions
from ftengine.evaluation.weights import Weights
from ftengine.text import find_personal, redact_json, redact_pieces

SHOWN = 10
"""Examples that are shown on each side."""
NOISE = 0.05
"""Change of the score of an answer, 0 to 1, that is not worth a look: every step of training makes such."""
LONGEST_TEXT = 600
"""Characters of an example that are shown."""


def scored_by(base: Mapping[str, ExampleScores], tuned: Mapping[str, ExampleScores]) -> str | None:
    """Return the evaluator that judges single examples: the first that marks answers right or wrong, else the first."""
    both = [name for name in tuned if name in base]
    scored = [name for name in both if not np.isnan(base[name].score + tuned[name].score).all()]
    decided = [name for name in scored if not np.isnan(base[name].right + tuned[name].right).all()]
    return next(iter([*decided, *scored]), None)


def exact_test(
    base: ExampleScores | None,
    tuned: ExampleScores | None,
    weights: Weights,
    mask: np.ndarray,
    before: Mapping[str, ResampledFigure],
    after: Mapping[str, ResampledFigure],
) -> dict[str, PValue]:
    """Return McNemar's test for each metric that is the share of right answers; {} if there is none.

    Args:
        base, tuned: scores of n examples; None if answers are not right or wrong.
        weights: of the n examples.
        mask: (n,) the examples that the evaluator reads.
        before, after: figures of base and tuned model on these examples.
    """
    if base is None or tuned is None:
        return {}
    sides = [ExampleScores(side.score[mask], side.right[mask]) for side in (base, tuned)]
    comparison = mcnemar(sides[0], sides[1], weights.under(mask))
    if comparison is None or comparison["p"] is None:
        return {}
    shares = [side.right.mean() for side in sides]  # nan, which is close to nothing, where one is neither
    names = [name for name in before if name in after]
    exact = PValue(comparison["p"], "mcnemar")
    return {n: exact for n in names if np.allclose([before[n].value, after[n].value], shares, rtol=0, atol=1e-9)}


def most_changed(base: ExampleScores, tuned: ExampleScores, duplicates: np.ndarray) -> tuple[list[int], list[int]]:
    """Return the examples whose score rose most and those whose score fell most, most first, each of
    several duplicates once.

    Left out are examples whose score did not change, and those that stayed right or stayed wrong and changed by less
    than `NOISE`. Without right and wrong answers the scale of scores is unknown, so every change counts. An answer that
    became wrong counts as worse, and one that became right as improved, whatever its score.
    """
    change, turned = tuned.score - base.score, np.nan_to_num(tuned.right - base.right)
    change = np.where(turned, turned * np.abs(change), change)
    change[(np.abs(change) < NOISE) & (tuned.right == base.right)] = 0
    comparable = np.flatnonzero(~np.isnan(change))
    order = comparable[np.argsort(change[comparable], kind="stable")]
    improved = _first(order[::-1][change[order[::-1]] > 0], duplicates)
    return improved, _first(order[change[order] < 0], duplicates)


def _first(members: np.ndarray, duplicates: np.ndarray) -> list[int]:
    """Return the first `SHOWN` members, each of several duplicates once."""
    firsts = np.unique(duplicates[members], return_index=True)[1]
    return members[np.sort(firsts)[:SHOWN]].tolist()


def single_examples(
    of: EvalSet, tables: Sequence[Predictions], scores: Sequence[Mapping[str, ExampleScores]]
) -> dict[str, Any]:
    """Return "evaluator", "improved", "worse" and "mistakes" of examples.json, with likely personal data redacted.

    `tables` are the predictions of base and tuned; `scores` are their scores by evaluator.
    """

    def items(by: str | None, chosen: Sequence[int]) -> list[dict[str, Any]]:
        answered = any(evaluator.name == by for evaluator in of.answering)
        return [_item(of, i, tables, [side[by or ""] for side in scores], answered=answered) for i in chosen]

    duplicates, name = tables[0].duplicates, scored_by(*scores)
    improved, worse = ([], []) if name is None else most_changed(scores[0][name], scores[1][name], duplicates)
    examples = {"evaluator": name, "improved": items(name, improved), "worse": items(name, worse)}
    for by, judged in scores[1].items():
        sure = np.full(len(duplicates), np.nan) if judged.wrong_confidence is None else judged.wrong_confidence
        wrong = np.flatnonzero(~np.isnan(sure))
        surest = _first(wrong[np.argsort(-sure[wrong], kind="stable")], duplicates)
        confident = zip(items(by, surest), surest, strict=True)
        if mistakes := [item | {"confidence": float(sure[i])} for item, i in confident]:
            examples.setdefault("mistakes", mistakes)
    return examples


def answers_to_read(of: EvalSet, base: Predictions, tuned: Predictions) -> dict[str, Any]:
    """Return "answers" and "answered_with" of examples.json: both models' answers to some prompts.

    Prompts that one model could not answer are left out. Likely personal data is redacted, also if an answer repeats it
    from the row.
    """
    rows, answers = of.split.index[of.answered], []
    for i in np.flatnonzero(base.answered & tuned.answered & np.isin(base.columns["row"], rows)).tolist():
        by_base, by_tuned = base.prediction(i), tuned.prediction(i)
        row = int(base.columns["row"][i])
        personal = _personal(of.split, row)
        answers.append(
            {
                "place": of.split.rows.where(row),
                "prompt": _shortened_text(by_base["prompt"], personal),
                "wanted": None if by_base.get("reference") is None else _shortened_text(by_base["reference"], personal),
                "base": _shortened_text(by_base["completion"], personal),
                "tuned": _shortened_text(by_tuned["completion"], personal),
            }
        )
    return {"answers": answers, "answered_with": dict(of.options)}


def _shortened_text(text: str, personal: Iterable[str]) -> str:
    return str(shortened(redact_pieces([(text, False)], personal))[0][0])


def _personal(split: EncodedSplit, row: int) -> list[str]:
    """Return the likely personal data in a row's texts."""
    return [value for text in split.rows.view(row, split.task).texts for _, value in find_personal(text)]


def _item(
    of: EvalSet, i: int, tables: Sequence[Predictions], judged: Sequence[ExampleScores], *, answered: bool
) -> dict[str, Any]:
    split, task = of.split, of.split.task
    row = int(tables[0].columns["row"][i])
    personal = _personal(split, row)
    item: dict[str, Any] = {
        "place": split.rows.where(row),
        "shown": shortened(redact_pieces(_pieces(split, row), personal)),
    }
    answers = answer_keys(task)
    for side, table, scores in zip(("base", "tuned"), tables, judged, strict=True):
        answer = {key: value for key, value in table.prediction(i).items() if (key in answers) == answered}
        shown = _brief(task.decode_prediction(answer) if overrides(task, "decode_prediction") else answer)
        item |= {
            side: redact_json(shown, personal),
            f"{side}_score": float(scores.score[i]),
            f"{side}_right": None if np.isnan(scores.right[i]) else bool(scores.right[i]),
        }
    return item


def _pieces(split: EncodedSplit, row: int) -> list[tuple[str, bool]]:
    """Return the row's texts and its target, as (text, is target); decoded from the encoding if they are no text."""
    view = split.rows.view(row, split.task)
    texts, target = view.texts, view.label
    if not texts:
        return split.task.decode_example(split.features(row), split.processor)
    if target is None:  # what a language model is to say comes last
        return [(text, 0 < i == len(texts) - 1) for i, text in enumerate(texts)]
    answer = ", ".join(map(str, target)) if isinstance(target, list) else str(target)
    return [*((text, False) for text in texts if text != answer), (answer, True)]


def shortened(pieces: list[tuple[str, bool]]) -> list[list[Any]]:
    """Return [text, is target] pieces of about `LONGEST_TEXT` characters in all, each cut in its middle."""
    total = sum(len(text) for text, _ in pieces)
    if total <= LONGEST_TEXT:
        return [[text, target] for text, target in pieces]
    cut = []
    for text, target in pieces:
        room = max(20, round(LONGEST_TEXT * len(text) / total))
        half = (room - 3) // 2
        cut.append([text if len(text) <= room else f"{text[:half]} … {text[-half:]}", target])
    return cut


def _brief(value: Any) -> Any:
    """Return a JSON value whose numbers have four digits: answers are for reading."""
    if isinstance(value, Mapping):
        return {str(key): _brief(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_brief(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
