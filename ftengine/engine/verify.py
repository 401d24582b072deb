"""Verifying which model an endpoint serves: the tuned one, its base, or something else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from ftengine.api import Prompt
from ftengine.api.task_sorts import can_be_asked
from ftengine.chat import stop_tokens
from ftengine.chat.endpoint import Endpoint
from ftengine.engine.evaluate import held_out_rows
from ftengine.engine.finished import Run
from ftengine.engine.informative_rows import informative_prompts, text_reader
from ftengine.engine.proof import exact_run
from ftengine.engine.served_faults import (
    Answers,
    Served,
    answer_fault,
    prompt_fault,
    reply_fault,
    unlike,
    weights_fault,
)
from ftengine.engine.variants import rounding_distance
from ftengine.errors import InputError
from ftengine.evaluation.likeness import EXACT, Likeness, likeness, turned
from ftengine.evaluation.questions import answer_tokens, compare_answers, has_scores, questions, same_answer
from ftengine.evaluation.rounding import LIKE, NOISE, ROOM, TYPES, USUAL, claimed_type
from ftengine.text import number


@dataclass(frozen=True)
class Verified:
    """Which model an endpoint serves, and the evidence.

    Args:
        served: "tuned", "base", "other" (neither of them), or "undecided".
        cause: the likely cause of "other", or the reason for "undecided"; "" otherwise.
        model: its name at the endpoint.
        weights: the assumed type of the weights.
        claimed_by: the origin of this assumption: "option", the model's "name", or "" if nothing is claimed.
        noise: the mean distance of log-probabilities that this type explains.
        rows: number of held-out rows that were sent.
        same_as_tuned, same_as_base: number of answers that equal the model's greedy answer.
        behind_tuned, behind_base: mean gap between the model's log-probability of its likeliest token and of the
            answer's token; 0 for its own greedy answers.
        from_tuned, from_base: mean distance of the endpoint's log-probabilities from the model's; None if the endpoint
            reports none, so that its quantisation is unknown.
        p: p-value of no difference between the two distances, paired by row.
        needed: number of rows with which the test would decide; None if it does, or this is unknown.
    """

    served: Served
    cause: str
    url: str
    model: str
    weights: str
    claimed_by: Literal["option", "name", ""]
    noise: float
    split: str
    rows: int
    same_as_tuned: int
    same_as_base: int
    behind_tuned: float
    behind_base: float
    from_tuned: float | None
    from_base: float | None
    p: float | None
    needed: int | None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def verify_run(run: Run, endpoint: Endpoint, *, rows: int, data: str | None = None, weights: str = "") -> Verified:
    """Send a run's held-out rows to an endpoint, and decide which model gave the answers.

    Args:
        weights: the type of the served weights, one of `TYPES`; "" takes it from the model's name at the endpoint,
            or allows for 16 and 8 bits.

    Raises:
        InputError: the run's task has no prompts, or the endpoint does not answer.
    """
    if weights and weights not in TYPES:
        raise InputError(f"--weights {weights!r} is not a known type. Allowed: {', '.join(TYPES)}.")
    named = "" if weights else claimed_type(endpoint.model)
    split, answers = _ask(run, endpoint, rows, data)
    noise = _noise(answers, weights or named or USUAL)
    if math.isnan(noise) and weights:
        raise InputError(
            f"--weights {weights}: the trained part cannot be merged, so the effect of that type's rounding "
            f"is unknown. "
            f"Serve one of {', '.join(NOISE)}, or verify without --weights."
        )
    named = "" if math.isnan(noise) else named
    answers = replace(answers, weights=weights or named or USUAL, noise=NOISE[USUAL] if math.isnan(noise) else noise)
    judged = likeness(answers.units(answers.tuned), answers.units(answers.base), 1.0, run.recipe.seed)
    served, cause = _decide(answers, judged, endpoint, claimed=bool(weights or named))
    return Verified(
        served=served,
        cause=endpoint.without_key(cause),
        url=endpoint.url,
        model=endpoint.model,
        weights=answers.weights,
        claimed_by="option" if weights else "name" if named else "",
        noise=answers.noise,
        split=split,
        rows=len(answers.prompts),
        same_as_tuned=sum(answers.alike),
        same_as_base=answers.same_as_base,
        behind_tuned=float(np.mean(answers.tuned.behind)),
        behind_base=float(np.mean(answers.base.behind)),
        from_tuned=answers.tuned.distance if answers.scored_replies else None,
        from_base=answers.base.distance if answers.scored_replies else None,
        p=judged.p,
        needed=judged.needed if served == "undecided" else None,
    )


def _ask(run: Run, endpoint: Endpoint, rows: int, data: str | None) -> tuple[str, Answers]:
    """Let the endpoint, the tuned model and its base answer; return the split's name and the answers."""
    ready = run.ready()
    if not can_be_asked(ready.task):
        raise InputError(f"task {ready.task.name!r} writes no text that an endpoint could be asked for.")
    split, held = held_out_rows(ready, run.directory, data)
    exact = exact_run(run, today=True)
    with exact.model(base=True) as loaded:
        stop = stop_tokens(text_reader(loaded))
        by_row, longest = informative_prompts(ready, held, loaded, rows, run)
        prompts = list(by_row.values())
        of_base = questions(text_reader(loaded), prompts, longest, stop)
    run.listener.phase("ask", len(prompts))
    replies = []
    for prompt in prompts:
        replies.append(endpoint.answer(prompt, longest))
        run.listener.advance()
    read = _read(endpoint, prompts)
    theirs = [reply.log_probabilities for reply in replies]
    with exact.model() as loaded:
        own = questions(text_reader(loaded), prompts, longest, stop)
        tokens = list[tuple[int, ...]]()
        for reply, *models in zip(replies, own, of_base, strict=True):
            # The text of a model's own answer need not come from the tokens that a tokenizer makes of it.
            likely = [question.answer for question in models if same_answer(reply.text, question.text)]
            likely.append(answer_tokens(text_reader(loaded).processor, reply.text, reply.ended, stop))
            fitting = (ids for ids in likely if has_scores(ids, reply.log_probabilities, stop))
            tokens.append(next(fitting, likely[0]))
        tuned = compare_answers(loaded, prompts, tokens, theirs, stop)
    with exact.model(base=True) as loaded:
        base = compare_answers(loaded, prompts, tokens, theirs, stop)
    same = sum(same_answer(reply.text, question.text) for reply, question in zip(replies, of_base, strict=True))
    return split, Answers(exact, prompts, replies, read, own, tokens, longest, stop, tuned, base, same)


def _read(endpoint: Endpoint, prompts: Sequence[Prompt]) -> list[tuple[Prompt, Sequence[int]]]:
    """Request the endpoint's token ids of a few prompts: the first, the longest, and those with special turns.

    Prompts with inputs are left out: programs count and write what stands beside the text in ways of their own.
    """
    if any(prompt.inputs for prompt in prompts):
        return []
    several = [prompt for prompt in prompts if prompt.messages and len(prompt.messages) > 2]
    system = [prompt for prompt in prompts if prompt.messages and prompt.messages[0]["role"] == "system"]
    chosen = [prompts[0], max(prompts, key=lambda prompt: len(prompt.ids)), *several[:1], *system[:1]]
    read = list[tuple[Prompt, Sequence[int]]]()
    for prompt in {id(candidate): candidate for candidate in chosen}.values():
        if (tokens := endpoint.tokens(prompt)) is None:
            break
        read.append((prompt, tokens))
    return read


def _noise(answers: Answers, kind: str) -> float:
    """Return the distance of log-probabilities that a type of weights explains.

    For types coarser than 8 bits it is measured on these answers; nan if the run cannot be merged and rounded.
    """
    if kind in NOISE:
        return NOISE[kind]
    measured = rounding_distance(answers.run, answers.moved, LIKE[kind])
    return measured if math.isnan(measured) else max(NOISE[USUAL], ROOM * measured)


def _decide(answers: Answers, judged: Likeness, endpoint: Endpoint, *, claimed: bool) -> tuple[Served, str]:
    """Decide what is served, with the reason if it is neither model or undecided."""
    served: Served = "other" if judged.decision == "neither" else judged.decision
    if served == "base" and not answers.is_base(judged):
        served = "other"
    if served != "base":
        off = served == "other"
        fault = (
            reply_fault(answers) or prompt_fault(answers, judged, sure=not off) or answer_fault(answers, off, endpoint)
        )
        if fault:
            return "other", fault
    served, fault = weights_fault(answers, judged, served)
    if fault or served == "base":
        return served, fault
    if served == "other":
        return served, unlike(answers, judged)
    differ = len(answers.alike) - sum(answers.alike)
    if (
        served == "tuned"
        and not answers.scored_replies
        and not claimed
        and np.mean(answers.tuned.behind) > turned(EXACT)
    ):
        return "undecided", (
            f"{differ:,} of {len(answers.alike):,} answers differ: its weights may be rounded to 8 bits, or a part of "
            "the trained change may be missing. The endpoint reports no log-probabilities, which would distinguish "
            "the two. Name the type of its weights with --weights"
        )
    if served == "undecided" and judged.from_tuned > 1:
        return served, (
            f"it is {number(judged.from_tuned)} times as far from the tuned model as {answers.weights} explains, which "
            "may be chance"
        )
    return served, ""
