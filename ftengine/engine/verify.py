"""Asking an endpoint which model it serves: the tuned one, its base, or something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from ftengine.api import LoadedModel, Prompt, overrides
from ftengine.engine.evaluate import held_out_rows
from ftengine.engine.export import endless, exact_run, prompts_of
from ftengine.engine.finished import Run
from ftengine.errors import InputError
from ftengine.evaluation.asked import Question, questions, whole
from ftengine.evaluation.likeness import likeness
from ftengine.evaluation.prompt_faults import likely_faults, token_fault
from ftengine.model import stop_tokens
from ftengine.model.endpoint import Endpoint, Reply
from ftengine.model.generation import answer_scores

NOISE = 0.05
"""How much less likely than the likeliest token an answer's tokens may be, in the mean: what rounding to 8 bits turns
around in greedy answers is nearer than that."""

TRIED = 8
"""Rows on which known faults of prompts are tried, each a pass of the model."""

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
        read = endpoint.tokens(prompts[0])
        behind_tuned = _behind(loaded, tuned, replies, stop)
    with exact.model(base=True) as loaded:
        base = questions(loaded, prompts, longest, stop)
        behind_base = _behind(loaded, base, replies, stop)
    judged = likeness(behind_tuned, behind_base, NOISE, run.recipe.seed)
    same = [_same(replies, own) for own in (tuned, base)]
    served: Served = "other" if judged.decision == "neither" else judged.decision
    if served == "base" and judged.from_base > NOISE:
        served = "other"
    with exact.model() as loaded:
        cause = _prompt_fault(loaded, prompts, replies, read, longest, stop, sure=served != "other")
    if cause and served != "base":
        served = "other"
    if not cause and served != "base" and endless([reply.text for reply in replies], tuned):
        served, cause = "other", "end tokens are missing: answers go on where the tuned model's end"
    elif served == "other" and not cause:
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


def _prompt_fault(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    replies: Sequence[Reply],
    read: Sequence[int] | None,
    longest: int,
    stop: Sequence[int],
    *,
    sure: bool,
) -> str:
    """Say how the endpoint reads other prompts than were measured; "" where it reads these, or nothing tells.

    By the first prompt's tokens, where it tells them; by how many tokens it counts in each, and by the known
    fault with which its answers are the tuned model's.

    Args:
        loaded: the tuned model.
        read: the tokens of the first prompt at the endpoint; None where it does not tell.
        sure: whether its answers are those of a model that reads the prompts as they were measured.
    """
    if read is not None and (fault := token_fault(prompts[0], read, loaded.processor)):
        return fault
    counted = [(i, n) for i, reply in enumerate(replies) if (n := reply.prompt_tokens) is not None]
    other = [(i, n) for i, n in counted if n != len(prompts[i].ids)]
    differ = bool(other)  # of one row alone: a system's turn, or a long conversation, may be what is read otherwise
    if sure and not differ:
        return ""
    faults: dict[str, list[tuple[Prompt, list[int], Reply]]] = {}
    for i in [i for i, _ in other][:TRIED] if differ else range(min(TRIED, len(prompts))):
        for fault, ids in likely_faults(prompts[i], loaded.processor):
            if replies[i].prompt_tokens in (None, len(ids)):
                faults.setdefault(fault, []).append((prompts[i], ids, replies[i]))
    behind = {}
    for fault, cases in faults.items():
        asked = questions(loaded, [replace(prompt, ids=ids) for prompt, ids, _ in cases], longest, stop)
        behind[fault] = float(np.mean(_behind(loaded, asked, [reply for *_, reply in cases], stop)))
    likely = sorted((fault for fault, far in behind.items() if far <= NOISE), key=behind.__getitem__)
    if likely:
        prompt, ids, _ = faults[likely[0]][0]
        others = f" As likely: {', or '.join(likely[1:])}." if likely[1:] else ""
        return token_fault(prompt, ids, loaded.processor) + others
    if not differ:
        return ""
    i, n = other[0]
    return (
        f"it reads {n:,} tokens of a prompt of which {len(prompts[i].ids):,} were measured: the chat template differs"
    )


def _behind(
    loaded: LoadedModel, asked: Sequence[Question], replies: Sequence[Reply], stop: Sequence[int]
) -> list[float]:
    """Return for each reply how much less likely its tokens are than the likeliest ones, in the mean.

    Nothing where the reply is the model's own answer, whose text need not come from the tokens that a tokenizer makes
    of it.
    """
    shortfalls = []
    for one, reply in zip(asked, replies, strict=True):
        if _alike(reply, one):
            shortfalls.append(0.0)
            continue
        tokens = loaded.processor(reply.text, add_special_tokens=False, verbose=False)["input_ids"]
        if reply.ended or not tokens:
            tokens = [*tokens, stop[-1]]
        scores = answer_scores(loaded, one.prompt.ids, tokens)
        shortfalls.append(float((scores[:, 1] - scores[:, 0]).mean()))
    return shortfalls


def _alike(reply: Reply, own: Question) -> bool:
    """Say whether a reply is a model's own greedy answer."""
    return whole(reply.text) == whole(own.text)


def _same(replies: Sequence[Reply], asked: Sequence[Question]) -> int:
    return sum(_alike(reply, one) for reply, one in zip(replies, asked, strict=True))


def _cause(replies: Sequence[Reply], same: Sequence[int], count: int) -> str:
    if not any(reply.text.strip() for reply in replies):
        return "its answers are empty: does the server take thoughts, or the whole answer, for something else?"
    if max(same) > count / 3:
        return "some answers are the same and others far off: the quantisation, the settings or the template differ"
    return "no answer of the tuned model or of its base: another model, or another chat template"
