"""Finding why an endpoint does not serve the tuned model: its answers, its reading of prompts, or its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from ftengine.api import LoadedModel, Prompt
from ftengine.chat.endpoint import Endpoint
from ftengine.chat.reply import Reply
from ftengine.engine.finished import Run
from ftengine.engine.proof import far_rows, missing_eos
from ftengine.engine.variants import NEARER, ROUNDINGS, find_fault, rounding_distance
from ftengine.equivalence import log_probability_distance
from ftengine.evaluation.likeness import EXACT, LEVEL, Likeness, in_noise, turned
from ftengine.evaluation.prompt_faults import likely_faults, token_fault
from ftengine.evaluation.questions import Compared, Question, compare_answers, complete_text, same_answer
from ftengine.evaluation.rounding import NOISE, USUAL, coarser
from ftengine.evaluation.significance import swap_test
from ftengine.text import number, one_line

Served = Literal["tuned", "base", "other", "undecided"]

TRIED = 8
"""Rows on which known faults of prompts and weights are tried, each a pass of the model."""
AGAIN = 3
"""Prompts that are asked once more where answers are not the likeliest ones."""
LEAST_DIFFERENT = 3
"""Answers that must differ before they alone tell what of the weights is lost."""
SHOWN = 40
"""Characters of an answer in a message."""


@dataclass(frozen=True)
class Answers:
    """An endpoint's answers, and how the tuned model and its base score them.

    Args:
        run: the run, whose models compute in float32.
        read: some prompts with their token ids at the endpoint, if it reports them.
        own: the tuned model's answers.
        tokens: the token ids of each reply.
        longest: the most tokens of an answer.
        stop: the tokens that end an answer.
        weights: the assumed type of the endpoint's weights.
        noise: the distance of log-probabilities that this type explains.
    """

    run: Run
    prompts: Sequence[Prompt]
    replies: Sequence[Reply]
    read: Sequence[tuple[Prompt, Sequence[int]]]
    own: Sequence[Question]
    tokens: Sequence[Sequence[int]]
    longest: int
    stop: Sequence[int]
    tuned: Compared
    base: Compared
    same_as_base: int
    weights: str = USUAL
    noise: float = NOISE[USUAL]

    @cached_property
    def alike(self) -> list[bool]:
        """For each reply, whether it is the tuned model's greedy answer."""
        return [same_answer(reply.text, question.text) for reply, question in zip(self.replies, self.own, strict=True)]

    @cached_property
    def scored_replies(self) -> list[int]:
        """Numbers of the replies that have log-probabilities."""
        return [i for i, offset in enumerate(self.tuned.offsets) if len(offset)]

    def units(self, compared: Compared) -> list[float]:
        """Return the distance of each reply from a model, in units of the distance that rounding explains."""
        return in_noise(compared.distances, compared.behind, self.noise)

    def distance(self, compared: Compared) -> float:
        """Return the mean distance of the replies from a model, in units that are the same for all models.

        The farthest quarter is left out, since a reply's text may stem from other tokens than its tokenization.
        """
        units = np.asarray(in_noise(compared.distances, compared.behind, self.noise, strict=False))
        has_scores = ~np.isnan(compared.distances)
        nearest = np.sort(units[has_scores] if has_scores.any() else units)
        return float(nearest[: math.ceil(0.75 * len(nearest))].mean())

    def compare(self, loaded: LoadedModel, rows: Sequence[int], prompts: Sequence[Prompt] | None = None) -> Compared:
        """Score some replies with a model, optionally with other prompts than the endpoint was sent."""
        prompts = [self.prompts[i] for i in rows] if prompts is None else prompts
        theirs = [self.replies[i].log_probabilities for i in rows]
        return compare_answers(loaded, prompts, [self.tokens[i] for i in rows], theirs, self.stop)

    def moved(self, loaded: LoadedModel) -> float:
        """Return the mean distance of a model's log-probabilities of the replies from the tuned model's."""
        scores = self.compare(loaded, range(len(self.prompts))).scores
        return float(np.mean(list(map(log_probability_distance, scores, self.tuned.scores))))

    def is_base(self, judged: Likeness) -> bool:
        """Return whether the endpoint serves the base, in any quantisation, and is not merely nearer to it."""
        if judged.from_base <= 1 or not self.scored_replies:
            return judged.from_base <= 1
        nearer = self.base.distance <= self.tuned.distance / NEARER
        return nearer and float(np.mean(self.base.behind)) <= turned(NOISE[USUAL])

    @property
    def in_question(self) -> bool:
        """Whether log-probabilities are further from the tuned model's than 16-bit weights explain."""
        return self.tuned.distance > EXACT

    def tried(self, judged: Likeness) -> list[int]:
        """Return the numbers of the rows on which faults are tested, the farthest first."""
        return list(dict.fromkeys([*judged.far, *range(len(self.prompts))]))[:TRIED]


# what it answers


def reply_fault(answers: Answers) -> str:
    """Describe a fault of the replies that no model would have (empty, all equal, cut); "" if there is none."""
    texts = [complete_text(reply.text) for reply in answers.replies]
    if not any(texts) and any(complete_text(question.text) for question in answers.own):
        return "its answers are empty: does the server take thoughts, or the whole answer, for something else?"
    if len(set(texts)) == 1 and len({complete_text(question.text) for question in answers.own}) > 1:
        shown = one_line(texts[0])[:SHOWN]
        return f"all {len(texts):,} prompts get one answer ({shown!r}): is it kept, or the prompt not read?"
    return _cut(answers)


def answer_fault(answers: Answers, off: bool, endpoint: Endpoint) -> str:
    """Describe how the answers were altered after or during generation; "" if no such fault is found.

    Args:
        off: whether the answers are beyond the noise of the tuned model's.
    """
    texts = [complete_text(reply.text) for reply in answers.replies]
    if missing_eos(texts, answers.own):
        return "end tokens are missing: answers go on where the tuned model's end"
    return (_early(answers) or _altered(answers, texts) or _sampled(answers, endpoint)) if off else ""


def _cut(answers: Answers) -> str:
    """Describe answers that were cut below the allowed length; "" if there are none."""
    lengths = []
    for reply, question, tokens, alike in zip(answers.replies, answers.own, answers.tokens, answers.alike, strict=True):
        count = reply.tokens or len(reply.log_probabilities) or len(tokens)
        begins = complete_text(reply.text) != "" and complete_text(question.text).startswith(complete_text(reply.text))
        if not alike and not reply.ended and (begins or (reply.ended is False and count < answers.longest - 1)):
            lengths.append(count)
    if not lengths:
        return ""
    return (
        f"{len(lengths):,} of {len(answers.replies):,} answers are cut, the longest at {max(lengths):,} tokens, "
        f"though {answers.longest:,} were allowed: the server has a limit (finish_reason length)"
    )


def _early(answers: Answers) -> str:
    """Describe answers that end where the tuned model continues; "" if there are none."""
    early = sum(
        not alike and bool(reply.ended) and complete_text(question.text).startswith(complete_text(reply.text))
        for reply, question, alike in zip(answers.replies, answers.own, answers.alike, strict=True)
    )
    if not early or 2 * early < len(answers.alike) - sum(answers.alike):
        return ""
    return f"{early:,} answers end before the tuned model's: a stop text, or an end token that is none of its own"


def _altered(answers: Answers, texts: Sequence[str]) -> str:
    """Describe texts that were changed after the model, or belong to other prompts; "" if there are none."""
    own = [complete_text(question.text) for question in answers.own]
    different = [i for i, alike in enumerate(answers.alike) if not alike]

    def most(count: int) -> bool:
        return 2 * count > len(different) and count > 1

    if most(sum(" ".join(texts[i].casefold().split()) == " ".join(own[i].casefold().split()) for i in different)):
        return "its answers are the tuned model's with other case or blanks: they are changed behind the model"
    if most(sum(own[i] != "" and own[i] in texts[i] for i in different)):
        return "its answers are the tuned model's with text around them: it is added behind the model"
    if len(set(own)) == len(own) and most(sum(texts[i] in own for i in different)):
        return "its answers are those of other prompts: they are mixed up, or kept"
    return ""


def _sampled(answers: Answers, endpoint: Endpoint) -> str:
    """Ask a prompt again, and describe a different answer; "" if it is the same or there is no reason to ask."""
    worst = sorted(range(len(answers.prompts)), key=lambda i: -answers.tuned.behind[i])
    if not answers.tuned.behind[worst[0]] > turned(EXACT):
        return ""
    for i in worst[:AGAIN]:
        if endpoint.answer(answers.prompts[i], answers.longest).text != answers.replies[i].text:
            return (
                "the same prompt is answered differently when it is asked again: it samples (a temperature above 0), "
                "though temperature 0 was asked for"
            )
    return ""


# how it reads prompts


def prompt_fault(answers: Answers, judged: Likeness, *, sure: bool) -> str:
    """Describe how the endpoint reads prompts differently from the evaluation; "" if it does not, or this is unknown.

    Evidence is the endpoint's token ids and token counts of prompts, if it reports them, and the known faults of
    prompts with which its answers would be the tuned model's.

    Args:
        sure: whether the answers already fit a model that reads the prompts as in the evaluation.
    """
    prompts, replies = answers.prompts, answers.replies
    if any(prompt.inputs for prompt in prompts):  # which programs write as tokens of their own number
        return ""
    with answers.run.model() as loaded:
        for prompt, tokens in answers.read:
            if fault := token_fault(prompt, tokens, loaded.processor):
                return fault
        other = [i for i, reply in enumerate(replies) if reply.prompt_tokens not in (None, len(prompts[i].ids))]
        if sure and not other and not answers.in_question:
            return ""
        rows = list(dict.fromkeys([*other, *answers.tried(judged)]))[:TRIED]
        if fault := _likely_prompt_fault(answers, loaded, rows, much=sure and not other):
            return fault
    if not other:
        return ""
    i = other[0]
    return (
        f"it reads {replies[i].prompt_tokens:,} tokens of a prompt of which {len(prompts[i].ids):,} were measured: "
        "the chat template differs"
    )


def _likely_prompt_fault(answers: Answers, loaded: LoadedModel, tried: Sequence[int], *, much: bool) -> str:
    """Name the known fault of prompts with which the replies would be the tuned model's; "" if there is none.

    Args:
        much: require replies to be `NEARER` times nearer with the fault, since they are within the noise anyway.
    """
    # Known faults change every prompt: one that some prompt's count contradicts is none.
    faults: dict[str, list[tuple[int, Prompt]]] = {}
    contradicted = set()
    counts = {count for i in tried if (count := answers.replies[i].prompt_tokens) is not None}
    for i in tried:
        for fault, ids in likely_faults(answers.prompts[i], loaded.processor, sorted(counts)):
            faults.setdefault(fault, []).append((i, replace(answers.prompts[i], ids=ids)))
            if answers.replies[i].prompt_tokens not in (None, len(ids)):
                contradicted.add(fault)
    far = {}
    for fault, cases in faults.items():
        if fault in contradicted or len(cases) < min(2, len(tried)):
            continue
        rows = [i for i, _ in cases]
        before = answers.distance(answers.tuned.of(rows))
        after = answers.distance(answers.compare(loaded, rows, [prompt for _, prompt in cases]))
        if after <= 1 and (counts or after < before) and not (much and after > before / NEARER):
            far[fault] = after
    likely = sorted(far, key=far.__getitem__)
    if not likely:
        return ""
    i, prompt = faults[likely[0]][0]
    others = f" As likely: {', '.join(likely[1:])}." if likely[1:] and far[likely[1]] <= 2 * far[likely[0]] else ""
    return token_fault(answers.prompts[i], prompt.ids, loaded.processor, likely[0]) + others


# its weights


def weights_fault(answers: Answers, judged: Likeness, served: Served) -> tuple[Served, str]:
    """Search for a variant of the tuned model that explains the answers; return what is served and the likely cause.

    If the tuned model seems to be served, it searches only if log-probabilities are displaced towards the base's; if
    the base seems to be served, only if they are further from it than rounding explains.
    """
    questionable = {
        "other": True,
        "undecided": answers.in_question or not answers.scored_replies,
        "base": judged.from_base > 1,
        "tuned": _displaced(answers),
    }
    if not questionable[served]:
        return served, ""
    rows = answers.tried(judged)
    different = sum(not answers.alike[i] for i in rows)
    if not answers.scored_replies and different < min(LEAST_DIFFERENT, len(rows)):
        return served, ""

    def distance(loaded: LoadedModel) -> float:
        return answers.distance(answers.compare(loaded, rows))

    before = answers.distance(answers.tuned.of(rows))
    roundings = ROUNDINGS if answers.scored_replies and served != "tuned" else ()
    variant = find_fault(answers.run, distance, 1.0, before, roundings)
    if variant is None:
        return served, ""
    if variant.kind != "rounding":
        return "other", f"it answers as the tuned model would {variant.reason}"
    if not coarser(variant.value, answers.weights):
        nearer = judged.closer > 0 and judged.p is not None and judged.p < LEVEL
        return ("tuned" if nearer else "undecided"), ""
    return "other", (
        f"it answers as the tuned model would {variant.reason}: a coarser quantisation than {_claim(answers)} "
        f"(log-probabilities are {number(answers.tuned.distance)} off)"
    )


def _displaced(answers: Answers) -> bool:
    """Return whether log-probabilities are displaced towards the base's, beyond 16-bit rounding and beyond chance.

    They are if a part of the trained weights is lost.
    """
    if not answers.in_question:
        return False
    towards = list[float]()
    for i in answers.scored_replies:
        offset = answers.tuned.offsets[i]
        towards.append(float(offset @ (answers.base.scores[i] - answers.tuned.scores[i])[: len(offset)]))
    p = swap_test(np.array(towards), answers.run.recipe.seed)
    return sum(towards) > 0 and p is not None and p < LEVEL


def _claim(answers: Answers) -> str:
    return "8 bits" if answers.weights == USUAL else answers.weights


def unlike(answers: Answers, judged: Likeness) -> str:
    """Describe how the replies differ from the tuned model's if no known fault explains it."""
    if 0 < 2 * len(judged.far) < judged.examples:
        return f"{far_rows(judged, answers.prompts)}: does the server read these otherwise?"
    from_tuned, base = answers.tuned.distance, answers.base.distance
    if from_tuned <= answers.noise:
        return (
            f"log-probabilities fit the tuned model's to {number(from_tuned)}, and its answers are not their likeliest "
            "tokens: it samples with a fixed seed, or has a penalty (repetition, presence) or a bias"
        )
    if base < from_tuned:
        return (
            f"log-probabilities are {number(from_tuned)} from the tuned model's and {number(base)} from the base's: "
            "another tuning of the base, or the base coarsely quantised"
        )
    near = float(np.mean(answers.tuned.behind)) <= turned(NOISE[USUAL])
    if answers.scored_replies and (near or max(sum(answers.alike), 1) > len(answers.alike) / 3):
        measured = {kind: rounding_distance(answers.run, answers.moved, kind) for kind in ("q5_0", "q4_0")}
        explained = ", ".join(f"{kind} {number(far)}" for kind, far in measured.items() if far == far)
        return (
            f"log-probabilities are {number(answers.tuned.distance)} from the tuned model's, and {_claim(answers)} "
            f"explain {number(answers.noise)}: a coarser quantisation"
            f"{f' (rounding explains, of {explained})' if explained else ''}, or what was trained is changed"
        )
    if max(sum(answers.alike), answers.same_as_base) > len(answers.alike) / 3:
        return "some answers are the same and others far off: the quantisation, the settings or the template differ"
    beside = any(prompt.inputs for prompt in answers.prompts)
    unread = ", or what stands beside the text, such as pictures, is not read" if beside else ""
    return f"no answer of the tuned model or of its base: another model, or another chat template{unread}"
