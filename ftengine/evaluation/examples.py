"""examples.json: the examples that tuning improved most and worsened most, with both answers."""

from __future__ import annotations

from typing import Any

from accelerate.utils import gather_object

from ftengine.api import Example, Shows, find_personal, redact_json, redact_pieces
from ftengine.data.encoding import EncodedSplit
from ftengine.evaluation.examination import Examination, Outcome
from ftengine.evaluation.judgements import UNKNOWN, Judgements, judging, most_changed

LONGEST_TEXT = 600
"""Characters of an example that are shown."""


def examples(examination: Examination, base: Outcome, tuned: Outcome) -> dict[str, Any]:
    """Return {"evaluator", "improved", "worse"}; all processes take part, and each has all of it.

    An item is {"place", "shown": [[text, is target], …], "base", "tuned" (the answers), "base_score",
    "tuned_score", "base_right", "tuned_right"}. Likely personal data is redacted in all of it.
    """
    name = judging(base.judgements, tuned.judgements)
    if name is None:
        return {"evaluator": None, "improved": [], "worse": []}
    split = examination.split
    judged = base.judgements[name], tuned.judgements[name]
    chosen = most_changed(*judged, split.groups)
    members = [member for side in chosen for member in side]
    answers = [_answers(outcome, name, members) for outcome in (base, tuned)]
    improved, worse = (
        [_item(split, member, judged, (answers[0][member], answers[1][member])) for member in side] for side in chosen
    )
    return {"evaluator": name, "improved": improved, "worse": worse}


def _answers(outcome: Outcome, evaluator: str, members: list[int]) -> dict[int, Any]:
    """Return the answers that were kept, wherever they are."""
    spool = outcome.spools.get(outcome.judged_in[evaluator])
    found = {member: answer for member in members if spool is not None and (answer := spool.get(member)) is not None}
    return dict.fromkeys(members) | {
        member: answer for part in gather_object([found]) for member, answer in part.items()
    }


def _item(
    split: EncodedSplit, member: int, judged: tuple[Judgements, Judgements], answers: tuple[Any, Any]
) -> dict[str, Any]:
    row = int(split.index[member])
    example = split.rows[row]
    personal = [value for text in split.task.view(example).texts for _, value in find_personal(text)]
    item: dict[str, Any] = {
        "place": split.rows.where(row),
        "shown": shortened(redact_pieces(_pieces(split, example), personal)),
    }
    for side, one, answer in zip(("base", "tuned"), judged, answers, strict=True):
        right = int(one.right[member])
        item |= {
            side: redact_json(answer, personal),
            f"{side}_score": float(one.scores[member]),
            f"{side}_right": None if right == UNKNOWN else bool(right),
        }
    return item


def _pieces(split: EncodedSplit, example: Example) -> list[tuple[str, bool]]:
    """Return the row's own text and what is wanted, as (text, is target); as the model reads it where it is no text."""
    view = split.task.view(example)
    texts, target = view.texts, view.label
    if not texts:
        features = split.task.encode(example, split.processor, max_length=split.max_length)
        return split.task.show(features, split.processor) if isinstance(split.task, Shows) else []
    if target is None:  # what a language model is to say comes last
        return [(text, 0 < i == len(texts) - 1) for i, text in enumerate(texts)]
    wanted = ", ".join(map(str, target)) if isinstance(target, list) else str(target)
    return [*((text, False) for text in texts if text != wanted), (wanted, True)]


def shortened(pieces: list[tuple[str, bool]], longest: int = LONGEST_TEXT) -> list[list[Any]]:
    """Return [text, is target] pieces of about `longest` characters in all, each cut in its middle by its share."""
    total = sum(len(text) for text, _ in pieces)
    if total <= longest:
        return [[text, target] for text, target in pieces]
    kept = []
    for text, target in pieces:
        room = max(20, round(longest * len(text) / total))
        half = (room - 3) // 2
        kept.append([text if len(text) <= room else f"{text[:half]} … {text[-half:]}", target])
    return kept
