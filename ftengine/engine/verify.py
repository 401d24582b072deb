"""Asking an endpoint which model it serves: the tuned one, its base, or something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ftengine.api import LoadedModel, overrides
from ftengine.engine.evaluate import held_out_rows
from ftengine.engine.export import endless, exact_run, prompts_of
from ftengine.engine.finished import Run
from ftengine.errors import InputError
from ftengine.evaluation.asked import Question, questions
from ftengine.evaluation.likeness import likeness
from ftengine.model import stop_tokens
from ftengine.model.endpoint import Endpoint, Reply
from ftengine.model.generation import answer_scores

NOISE = 0.05
"""How much less likely than the likeliest token an answer's tokens may be, in the mean: what rounding to 8 bits turns
around in greedy answers is nearer than that."""

Served = Literal["tuned", "base", "other", "undecided"]


@dataclass(frozen=True)
class Verified:
    """What an endpoint serves.

    Args:
        served: "tuned", "base", "other" (neither of them), or "undecided".
        cause: the likely cause where it is another one; "" else.
        model: its name at the endpoint.
        rows: held-out rows that were asked; `same_as_tuned` and `same_as_base` are answers equal to greedy ones.
        behind_tuned, behind_base: by how much an answer's tokens are less likely than the likeliest of each model, in
            the mean over rows; 0 of its own greedy answers.
        p: of no difference between the two, paired by row.
        needed: rows with which the test would decide; None where it does, or that is not known.
    """

    served: Served
    cause: str
    url: str
    model: str
    split: str
    rows: int
    same_as_tuned: int
    same_as_base: int
    behind_tuned: float
    behind_base: float
    p: float | None
    needed: int | None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def verify_run(run: Run, endpoint: Endpoint, *, rows: int, data: str | None = None) -> Verified:
    """Ask an endpoint a run's held-out rows, and say which model's answers these are.

    Raises:
        InputError: the run's task gives no prompts, or the endpoint does not answer.
    """
    ready = run.ready()
    if not overrides(ready.task, "prompt"):
        raise InputError(f"task {ready.task.name!r} writes no text that an endpoint could be asked for.")
    split, held = held_out_rows(ready, run.directory, data)
    exact = exact_run(run)
    with exact.model() as loaded:
        stop = tuple(dict.fromkeys(stop_tokens(loaded)))
        prompts, longest = prompts_of(ready, held, loaded, rows, run)
        tuned = questions(loaded, prompts, longest, stop)
        run.listener.phase("ask", len(prompts))
        replies = list[Reply]()
        for prompt in prompts:
            replies.append(endpoint.answer(prompt, longest))
            run.listener.advance()
        behind_tuned = _behind(loaded, tuned, replies, stop)
    with exact.model(base=True) as loaded:
        base = questions(loaded, prompts, longest, stop)
        behind_base = _behind(loaded, tuned, replies, stop)
    judged = likeness(behind_tuned, behind_base, NOISE, run.recipe.seed)
    same = [_same(replies, own) for own in (tuned, base)]
    served: Served = "other" if judged.decision == "neither" else judged.decision
    if served == "base" and judged.from_base > NOISE:
        served = "other"
    cause = ""
    if endless([reply.text for reply in replies], tuned):
        served, cause = "other", "end tokens are missing: answers go on where the tuned model's end"
    elif served == "other":
        cause = _cause(replies, same, len(tuned))
    return Verified(
        served,
        cause,
        endpoint.url,
        endpoint.model,
        split,
        len(tuned),
        same[0],
        same[1],
        judged.from_tuned,
        judged.from_base,
        judged.p,
        judged.needed if served == "undecided" else None,
    )


def _behind(
    loaded: LoadedModel, asked: Sequence[Question], replies: Sequence[Reply], stop: Sequence[int]
) -> list[float]:
    """Return for each reply how much less likely its tokens are than the likeliest ones, in the mean."""
    found = []
    for one, reply in zip(asked, replies, strict=True):
        tokens = loaded.processor(reply.text, add_special_tokens=False, verbose=False)["input_ids"]
        if reply.ended or not tokens:
            tokens = [*tokens, stop[-1]]
        scores = answer_scores(loaded, one.prompt.ids, tokens)
        found.append(float((scores[:, 1] - scores[:, 0]).mean()))
    return found


def _same(replies: Sequence[Reply], asked: Sequence[Question]) -> int:
    return sum(reply.text.strip() == one.text.strip() for reply, one in zip(replies, asked, strict=True))


def _cause(replies: Sequence[Reply], same: Sequence[int], count: int) -> str:
    if not any(reply.text.strip() for reply in replies):
        return "its answers are empty: does the server take thoughts, or the whole answer, for something else?"
    if max(same) > count / 3:
        return "some answers are the same and others far off: the template, its settings or the quantisation differ"
    return "no answer of the tuned model or of its base: another model, or another chat template"
