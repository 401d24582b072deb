"""Asking an endpoint which model it serves: the tuned one, its base, or something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from ftengine.api import LoadedModel, Prompt, overrides
from ftengine.engine.asked_rows import telling_prompts
from ftengine.engine.evaluate import held_out_rows
from ftengine.engine.finished import Run
from ftengine.engine.proof import endless, exact_run, far_rows
from ftengine.engine.scaled import scale_fault
from ftengine.errors import InputError
from ftengine.evaluation.asked import Question, questions, whole
from ftengine.evaluation.likeness import Likeness, likeness
from ftengine.evaluation.prompt_faults import likely_faults, token_fault
from ftengine.model import stop_tokens
from ftengine.model.endpoint import Endpoint
from ftengine.model.generation import answer_scores
from ftengine.model.reply import Reply
from ftengine.text import number

NOISE = 0.05
"""How much less likely than the likeliest token an answer's tokens may be, in the mean: what rounding to 8 bits turns
around in greedy answers is nearer than that."""

QUANTISED = 0.1
"""How far a token's log-probability may be from the tuned model's, in the mean: what weights of 16 or 8 bits explain.
docs/serving.md has what was measured."""

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
        from_tuned, from_base: distance of a token's log-probability, as the endpoint gives it, from that of each model,
            in the mean over rows; None where it gives none, so that its quantisation is not known.
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
    from_tuned: float | None
    from_base: float | None
    p: float | None
    needed: int | None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Compared:
    """What a model makes of replies: for each how much less likely its tokens are than the likeliest ones (`behind`),
    and how far their log-probabilities are from those that the endpoint gives (`apart`, nan where it gives none), in
    the mean over tokens.
    """

    behind: list[float]
    apart: list[float]


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
        stop = stop_tokens(loaded)
        by_row, longest = telling_prompts(ready, held, loaded, rows, run)
        prompts = list(by_row.values())
        tuned = questions(loaded, prompts, longest, stop)
        run.listener.phase("ask", len(prompts))
        replies = list[Reply]()
        for prompt in prompts:
            replies.append(endpoint.answer(prompt, longest))
            run.listener.advance()
        read = _read(endpoint, prompts)
        of_tuned = _compared(loaded, tuned, replies, stop)
    with exact.model(base=True) as loaded:
        base = questions(loaded, prompts, longest, stop)
        of_base = _compared(loaded, base, replies, stop)
    judged = likeness(of_tuned.behind, of_base.behind, NOISE, run.recipe.seed)
    known = [i for i, one in enumerate(of_tuned.apart) if one == one and of_base.apart[i] == of_base.apart[i]]
    told = likeness(of_tuned.apart, of_base.apart, QUANTISED, run.recipe.seed) if len(known) > 1 else None
    served, needed = _served(judged, told)
    same = [_same(replies, own) for own in (tuned, base)]
    with exact.model() as loaded:
        off = [*judged.far, *(told.far if told is not None else ())]
        cause = _prompt_fault(loaded, prompts, replies, read, longest, stop, of_tuned, off, sure=served != "other")
    if cause and served != "base":
        served = "other"
    if not cause and served != "base" and endless([reply.text for reply in replies], tuned):
        served, cause = "other", "end tokens are missing: answers go on where the tuned model's end"
    elif not cause and (served == "other" or (told is not None and served == "base" and told.from_base > QUANTISED)):
        cause = _scale_fault(exact, prompts, replies, longest, stop, of_tuned, off)
        served = "other" if cause else served
    if served == "other" and not cause:
        cause = _cause(replies, same, len(tuned), prompts, judged, told)
    return Verified(
        served,
        endpoint.without_key(cause),
        endpoint.url,
        endpoint.model,
        split,
        len(tuned),
        same[0],
        same[1],
        judged.from_tuned,
        judged.from_base,
        None if told is None else told.from_tuned,
        None if told is None else told.from_base,
        judged.p if told is None else told.p,
        needed if served == "undecided" else None,
    )


def _served(judged: Likeness, told: Likeness | None) -> tuple[Served, int | None]:
    """Say which model is served by the answers and, where the endpoint gives them, their log-probabilities.

    Returns:
        The model, and how many rows would decide where these do not.
    """
    served: Served = "other" if judged.decision == "neither" else judged.decision
    if served == "base" and judged.from_base > NOISE:
        served = "other"
    if told is None or served == "other":
        return served, judged.needed
    if told.decision == "base":  # in any quantisation, where the answers are its own; else neither's
        near = served == "base" or (served == "undecided" and told.from_base <= QUANTISED)
        return "base" if near else "other", None
    if served == "base":  # which the log-probabilities contradict, or cannot tell
        return "base" if told.decision == "undecided" else "other", None
    return "other" if told.decision == "neither" else "tuned" if served == "tuned" else told.decision, told.needed


def _read(endpoint: Endpoint, prompts: Sequence[Prompt]) -> list[tuple[Prompt, Sequence[int]]]:
    """Ask for the tokens that an endpoint makes of a few prompts: the first, the longest, those with further turns."""
    several = [prompt for prompt in prompts if prompt.messages and len(prompt.messages) > 2]
    system = [prompt for prompt in prompts if prompt.messages and prompt.messages[0]["role"] == "system"]
    chosen = [prompts[0], max(prompts, key=lambda prompt: len(prompt.ids)), *several[:1], *system[:1]]
    read = list[tuple[Prompt, Sequence[int]]]()
    for prompt in {id(one): one for one in chosen}.values():
        if (tokens := endpoint.tokens(prompt)) is None:
            break
        read.append((prompt, tokens))
    return read


def _prompt_fault(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    replies: Sequence[Reply],
    read: Sequence[tuple[Prompt, Sequence[int]]],
    longest: int,
    stop: Sequence[int],
    measured: Compared,
    off: Sequence[int],
    *,
    sure: bool,
) -> str:
    """Say how the endpoint reads other prompts than were measured; "" where it reads these, or nothing tells.

    By the tokens of some prompts, where it tells them; by how many tokens it counts in each, and by the known fault
    with which its answers are the tuned model's.

    Args:
        read: prompts, and their tokens at the endpoint.
        measured: what the model makes of the replies to the prompts as they were measured.
        off: rows whose replies are far from these, the farthest first.
        sure: whether its answers are those of a model that reads the prompts as they were measured.
    """
    for prompt, tokens in read:
        if fault := token_fault(prompt, tokens, loaded.processor):
            return fault
    other = [i for i, reply in enumerate(replies) if reply.prompt_tokens not in (None, len(prompts[i].ids))]
    if sure and not other:
        return ""
    # Known faults change every prompt: one that some prompt's count contradicts is none.
    tried = list(dict.fromkeys([*other, *off, *range(len(prompts))]))[:TRIED]
    faults: dict[str, list[tuple[int, Prompt, list[int], Reply]]] = {}
    contradicted = set()
    for i in tried:
        for fault, ids in likely_faults(prompts[i], loaded.processor):
            faults.setdefault(fault, []).append((i, prompts[i], ids, replies[i]))
            if replies[i].prompt_tokens not in (None, len(ids)):
                contradicted.add(fault)
    far = {}
    for fault, cases in faults.items():
        if fault in contradicted or len(cases) < min(2, len(tried)):
            continue
        asked = questions(loaded, [replace(prompt, ids=ids) for _, prompt, ids, _ in cases], longest, stop)
        compared = _compared(loaded, asked, [reply for *_, reply in cases], stop)
        apart, behind = _means(compared)
        before = _means(Compared(*([one[i] for i, *_ in cases] for one in (measured.behind, measured.apart))))
        if behind <= NOISE and apart <= QUANTISED and (other or (apart, behind) < before):
            far[fault] = (apart, behind)
    likely = sorted(far, key=far.__getitem__)
    if likely:
        _, prompt, ids, _ = faults[likely[0]][0]
        others = f" As likely: {', or '.join(likely[1:])}." if likely[1:] else ""
        return token_fault(prompt, ids, loaded.processor) + others
    if not other:
        return ""
    i = other[0]
    return (
        f"it reads {replies[i].prompt_tokens:,} tokens of a prompt of which {len(prompts[i].ids):,} were measured: "
        "the chat template differs"
    )


def _scale_fault(
    run: Run,
    prompts: Sequence[Prompt],
    replies: Sequence[Reply],
    longest: int,
    stop: Sequence[int],
    measured: Compared,
    off: Sequence[int],
) -> str:
    """Say with which multiple of what training changed the endpoint's model answers; "" where none explains it.

    Distances are in units of what rounding explains, the larger one of answers and log-probabilities.
    """
    tried = list(dict.fromkeys([*off, *range(len(prompts))]))[:TRIED]

    def largest(compared: Compared) -> float:
        apart, behind = _means(compared)
        return max(apart / QUANTISED, behind / NOISE)

    def distance(loaded: LoadedModel) -> float:
        asked = questions(loaded, [prompts[i] for i in tried], longest, stop)
        return largest(_compared(loaded, asked, [replies[i] for i in tried], stop))

    before = Compared(*([one[i] for i in tried] for one in (measured.behind, measured.apart)))
    return scale_fault(run, distance, 1.0, largest(before))


def _means(compared: Compared) -> tuple[float, float]:
    """Return how far log-probabilities are, where they are told, and how far answers are behind, in the mean."""
    told = [one for one in compared.apart if one == one]
    return float(np.mean(told)) if told else 0.0, float(np.mean(compared.behind))


def _compared(
    loaded: LoadedModel, asked: Sequence[Question], replies: Sequence[Reply], stop: Sequence[int]
) -> Compared:
    """Compare replies with what a model makes of the same prompts.

    A reply that is the model's own answer is not behind: its text need not come from the tokens that a tokenizer makes
    of it.
    """
    behind, apart = [], []
    for one, reply in zip(asked, replies, strict=True):
        alike, tokens = _alike(reply, one), list(one.answer)
        if not alike:
            text = reply.text.rstrip("\N{REPLACEMENT CHARACTER}")
            tokens = loaded.processor(text, add_special_tokens=False, verbose=False)["input_ids"]
            tokens = [*tokens, stop[-1]] if reply.ended or not tokens else tokens
        if alike and not reply.log_probabilities:
            behind.append(0.0)
            apart.append(float("nan"))
            continue
        scores = answer_scores(loaded, one.prompt.ids, tokens).double().cpu().numpy()
        behind.append(0.0 if alike else float((scores[:, 1] - scores[:, 0]).mean()))
        theirs = np.array(reply.log_probabilities)
        # What ends an answer is told by some and not by others.
        fits = 0 < len(theirs) <= len(tokens) and len(tokens) - len(theirs) <= (tokens[-1] in stop)
        apart.append(float(np.abs(scores[: len(theirs), 0] - theirs).mean()) if fits else float("nan"))
    return Compared(behind, apart)


def _alike(reply: Reply, own: Question) -> bool:
    """Say whether a reply is a model's own greedy answer."""
    return whole(reply.text) == whole(own.text)


def _same(replies: Sequence[Reply], asked: Sequence[Question]) -> int:
    return sum(_alike(reply, one) for reply, one in zip(replies, asked, strict=True))


def _cause(
    replies: Sequence[Reply],
    same: Sequence[int],
    count: int,
    prompts: Sequence[Prompt],
    judged: Likeness,
    told: Likeness | None,
) -> str:
    if not any(reply.text.strip() for reply in replies):
        return "its answers are empty: does the server take thoughts, or the whole answer, for something else?"
    if 0 < 2 * len(judged.far) < judged.examples:
        return f"{far_rows(judged, prompts)}: does the server read these otherwise?"
    if judged.from_tuned <= NOISE and told is not None:
        if 0 < 2 * len(told.far) < told.examples:
            return f"by log-probabilities {far_rows(told, prompts)}: does the server read these otherwise?"
        return (
            f"log-probabilities are {number(told.from_tuned)} from the tuned model's, and weights of 16 or 8 bits "
            f"explain {number(QUANTISED)}: the quantisation is coarser, or what was trained has another scale"
        )
    if max(same) > count / 3:
        return "some answers are the same and others far off: the quantisation, the settings or the template differ"
    return "no answer of the tuned model or of its base: another model, or another chat template"
