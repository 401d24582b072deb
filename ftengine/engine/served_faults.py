"""Why an endpoint does not serve the tuned model: its answers, how it reads prompts, or its weights."""

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
from ftengine.evaluation.asked import Compared, Question, compare_answers, complete_text, same_answer
from ftengine.evaluation.likeness import EXACT, LEVEL, Likeness, in_noise, turned
from ftengine.evaluation.prompt_faults import likely_faults, token_fault
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
    """What an endpoint answers, and what the tuned model and its base make of that.

    Args:
        run: in float32.
        read: some prompts, and their tokens at the endpoint where it gives them.
        own: the tuned model's answers.
        tokens: of each reply.
        longest: an answer in tokens; `stop` are those that end one.
        weights: the type that the endpoint's weights are taken to have; `noise` is what that explains.
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
        """Of each reply, whether it is the tuned model's own greedy answer."""
        return [same_answer(reply.text, question.text) for reply, question in zip(self.replies, self.own, strict=True)]

    @cached_property
    def scored_replies(self) -> list[int]:
        """Numbers of replies whose log-probabilities are known."""
        return [i for i, offset in enumerate(self.tuned.offsets) if len(offset)]

    def units(self, compared: Compared) -> list[float]:
        """Return how far replies are from a model's, in units of what rounding explains."""
        return in_noise(compared.distances, compared.behind, self.noise)

    def distance(self, compared: Compared) -> float:
        """Return how far replies are from a model's, in the mean, in units that are the same for all models.

        The farthest quarter is left out: a text may have come from other tokens than a tokenizer makes of it, and where
        log-probabilities are given, but not of so many tokens, it did.
        """
        units = np.asarray(in_noise(compared.distances, compared.behind, self.noise, strict=False))
        has_scores = ~np.isnan(compared.distances)
        nearest = np.sort(units[has_scores] if has_scores.any() else units)
        return float(nearest[: math.ceil(0.75 * len(nearest))].mean())

    def compare(self, loaded: LoadedModel, rows: Sequence[int], prompts: Sequence[Prompt] | None = None) -> Compared:
        """Return what a model makes of some replies, where given to other prompts than were asked."""
        prompts = [self.prompts[i] for i in rows] if prompts is None else prompts
        theirs = [self.replies[i].log_probabilities for i in rows]
        return compare_answers(loaded, prompts, [self.tokens[i] for i in rows], theirs, self.stop)

    def moved(self, loaded: LoadedModel) -> float:
        """Return how far a model's log-probabilities of the replies are from the tuned model's, in the mean."""
        scores = self.compare(loaded, range(len(self.prompts))).scores
        return float(np.mean(list(map(log_probability_distance, scores, self.tuned.scores))))

    def is_base(self, judged: Likeness) -> bool:
        """Say whether it is the base, and not only nearer to it than to the tuned model; in any quantisation."""
        if judged.from_base <= 1 or not self.scored_replies:
            return judged.from_base <= 1
        nearer = self.base.distance <= self.tuned.distance / NEARER
        return nearer and float(np.mean(self.base.behind)) <= turned(NOISE[USUAL])

    @property
    def in_question(self) -> bool:
        """Say whether log-probabilities are further from the tuned model's than weights of 16 bits explain."""
        return self.tuned.distance > EXACT

    def tried(self, judged: Likeness) -> list[int]:
        """Return the numbers of rows on which faults are tried, the farthest first."""
        return list(dict.fromkeys([*judged.far, *range(len(self.prompts))]))[:TRIED]


# what it answers


def reply_fault(answers: Answers) -> str:
    """Say what is wrong with the replies, whatever was asked and whatever model they are from; "" where nothing."""
    texts = [complete_text(reply.text) for reply in answers.replies]
    if not any(texts) and any(complete_text(question.text) for question in answers.own):
        return "its answers are empty: does the server take thoughts, or the whole answer, for something else?"
    if len(set(texts)) == 1 and len({complete_text(question.text) for question in answers.own}) > 1:
        shown = one_line(texts[0])[:SHOWN]
        return f"all {len(texts):,} prompts get one answer ({shown!r}): is it kept, or the prompt not read?"
    return _cut(answers)


def answer_fault(answers: Answers, off: bool, endpoint: Endpoint) -> str:
    """Say how the answers differ from the tuned model's to the same prompts; "" where they do not, or otherwise.

    Args:
        off: whether they are not within the noise of the tuned model's.
    """
    texts = [complete_text(reply.text) for reply in answers.replies]
    if missing_eos(texts, answers.own):
        return "end tokens are missing: answers go on where the tuned model's end"
    return (_early(answers) or _altered(answers, texts) or _sampled(answers, endpoint)) if off else ""


def _cut(answers: Answers) -> str:
    """Say that answers are shorter than was allowed and did not end by themselves; "" where none is."""
    lengths = []
    for reply, question, tokens, alike in zip(answers.replies, answers.own, answers.tokens, answers.alike, strict=True):
        count = reply.tokens or len(reply.log_probabilities) or len(tokens)
        begins = complete_text(reply.text) != "" and complete_text(question.text).startswith(complete_text(reply.text))
        if not alike and not reply.ended and (begins or (reply.ended is False and count < answers.longest - 1)):
            lengths.append(count)
    if not lengths:
        return ""
    return (
        f"{len(lengths):,} of {len(answers.replies):,} answers are cut, the longest at {max(lengths):,} tokens, of the "
        f"{answers.longest:,} that were allowed: a limit of the server (finish_reason length)"
    )


def _early(answers: Answers) -> str:
    """Say that answers end by themselves where the tuned model goes on; "" where none does."""
    early = sum(
        not alike and bool(reply.ended) and complete_text(question.text).startswith(complete_text(reply.text))
        for reply, question, alike in zip(answers.replies, answers.own, answers.alike, strict=True)
    )
    if not early or 2 * early < len(answers.alike) - sum(answers.alike):
        return ""
    return f"{early:,} answers end before the tuned model's: a stop text, or an end token that is none of its own"


def _altered(answers: Answers, texts: Sequence[str]) -> str:
    """Say that something behind the model changes its texts, or answers other prompts with them; "" where not."""
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
    """Say that a prompt is answered differently when it is asked again; "" where it is not, or need not be asked."""
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
    """Say how the endpoint reads other prompts than were measured; "" where it reads these, or nothing tells.

    By the tokens of some prompts, where it gives them; by how many tokens it counts in each, and by the known fault
    with which its answers are the tuned model's.

    Args:
        sure: whether its answers are those of a model that reads the prompts as they were measured.
    """
    prompts, replies = answers.prompts, answers.replies
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
    """Say with which known fault of prompts the replies are the tuned model's; "" where with none.

    Args:
        much: whether these must be `NEARER` times nearer with it, as they are within the noise without it too.
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
    """Look for the variant of the tuned model that answers; return what is served, and the likely cause.

    Where the tuned model is served by the decision, that is looked for only where log-probabilities are off towards the
    base's; where the base is, only where it is further from it than rounding explains.
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
    """Say whether log-probabilities are off towards the base's, by more than 16 bits explain and beyond chance.

    So they are where a part of what was trained is lost.
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
    """Say how the replies differ from the tuned model's where no known fault explains it."""
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
    return "no answer of the tuned model or of its base: another model, or another chat template"
