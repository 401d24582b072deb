"""Prompts with reference answers, by which to recognise the model that a program serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from ftengine.api import LoadedModel, Prompt, Runtime
from ftengine.equivalence import log_probability_distance
from ftengine.generation import (
    Answer,
    GenerationOptions,
    answer_scores,
    beside_tokens,
    draw_answers,
    generate,
    log_probabilities,
)
from ftengine.model import evaluating, quiet_transformers


@dataclass(frozen=True)
class Question:
    """A prompt with the tuned model's answer.

    Args:
        answer: the tokens that are scored: the tuned model's answer, with the token that ended it where it ended.
        text: the same answer as text, without special tokens.
        ended: whether it ended within the tokens that were allowed.
    """

    prompt: Prompt
    answer: tuple[int, ...]
    text: str
    ended: bool


def questions(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    stop: Sequence[int],
    drawn: Mapping[str, Any] | None = None,
) -> list[Question]:
    """Let the tuned model answer prompts, greedily or with the options `drawn`; tokens in `stop` end an answer."""
    options, answered = GenerationOptions.read({"max_new_tokens": max_new_tokens, **(drawn or {})}), list[Question]()
    if any(prompt.inputs for prompt in prompts):
        answers = [_continued(loaded, prompt, options, stop) for prompt in prompts]
    else:
        answers = draw_answers(loaded, [prompt.ids for prompt in prompts], options, stop)
    for prompt, answer in zip(prompts, answers, strict=True):
        text, end = loaded.processor.decode(answer.tokens, skip_special_tokens=True), answer.ended_by
        answered.append(Question(prompt, (*answer.tokens, *(() if end is None else (end,))), text, end is not None))
    return answered


def _continued(loaded: LoadedModel, prompt: Prompt, options: GenerationOptions, stop: Sequence[int]) -> Answer:
    """Return the model's greedy answer to a prompt with inputs beside its tokens."""
    module: Any = loaded.module
    ids = torch.tensor([list(prompt.ids)], device=next(module.parameters()).device)
    with torch.no_grad(), evaluating(module), quiet_transformers():
        output = module.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **beside_tokens(module, prompt.inputs, len(prompt.ids)),
            do_sample=False,
            num_beams=1,
            max_new_tokens=options.max_new_tokens,
            eos_token_id=list(stop),
            pad_token_id=stop[-1],
        )
    tokens = output[0, len(prompt.ids) :].tolist()
    end = tokens.pop() if tokens and tokens[-1] in stop else None
    return Answer(tokens, end)


def complete_text(text: str) -> str:
    """Strip an answer and drop a trailing incomplete character, which programs that cut answers show differently."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}").strip()


def same_answer(some: str, other: str) -> bool:
    """Return whether two answers are equal, apart from a trailing incomplete character."""
    return complete_text(some) == complete_text(other)


def scored(
    score: Callable[[Sequence[int], Sequence[int]], Sequence[float]], asked_questions: Sequence[Question]
) -> list[np.ndarray]:
    """Return the log-probabilities of each question's answer, (tokens,)."""
    return [np.asarray(score(question.prompt.ids, question.answer), dtype=np.float64) for question in asked_questions]


@dataclass(frozen=True)
class Compared:
    """How a model scores a program's answers.

    Args:
        behind: per answer, the mean gap between the log-probabilities of the likeliest tokens and of the answer's.
        distances: the mean distance of their log-probabilities from those of the program; nan where it reports none.
        offsets: the program's log-probabilities minus the model's, (tokens,); empty if it reports none.
        scores: the model's log-probabilities, (tokens,).
    """

    behind: list[float]
    distances: list[float]
    offsets: list[np.ndarray]
    scores: list[np.ndarray]

    def of(self, rows: Sequence[int]) -> Compared:
        """Return the scores of some answers, by number."""
        return Compared(*([column[i] for i in rows] for column in vars(self).values()))

    @property
    def distance(self) -> float:
        """The mean of `distances` over answers with reported log-probabilities; nan if there are none."""
        return log_probability_distance(np.array(self.distances), np.zeros(len(self.distances)))


def compare_answers(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[int]],
    theirs: Sequence[Sequence[float]],
    stop: Sequence[int],
) -> Compared:
    """Score a program's answers with a model.

    Args:
        answers: token ids; a last token from `stop` is scored as the likeliest token of `stop`.
        theirs: the program's log-probabilities of each answer, with or without that of the end token.
    """
    behind, distances, offsets, scores = list[float](), list[float](), list[np.ndarray](), list[np.ndarray]()
    for prompt, tokens, reported in zip(prompts, answers, theirs, strict=True):
        own = answer_scores(loaded, prompt.ids, tokens, stop, prompt.inputs).double().cpu().numpy()
        program_scores = np.asarray(reported if has_scores(tokens, reported, stop) else (), dtype=np.float64)
        expected = own[: len(program_scores), 0]
        behind.append(float((own[:, 1] - own[:, 0]).mean()))
        distances.append(log_probability_distance(program_scores, expected))
        offsets.append(program_scores - expected)
        scores.append(own[:, 0])
    return Compared(behind, distances, offsets, scores)


def has_scores(tokens: Sequence[int], theirs: Sequence[float], stop: Sequence[int]) -> bool:
    """Return whether a program reports log-probabilities of all these tokens; the end token's may be missing."""
    return 0 < len(theirs) <= len(tokens) and len(tokens) - len(theirs) <= (tokens[-1] in stop)


def answer_tokens(processor: Any, text: str, ended: bool | None, stop: Sequence[int]) -> tuple[int, ...]:
    """Return the token ids of an answer's text, with an end token if the answer ended by itself."""
    tokens = processor(text.rstrip("\N{REPLACEMENT CHARACTER}"), add_special_tokens=False, verbose=False)["input_ids"]
    return (*tokens, stop[-1]) if ended or not tokens else tuple(tokens)


class ModuleRuntime(Runtime):
    """Runs a transformers module as a server does: with its own template, tokenizer and end tokens."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        self.loaded = loaded
        self.name = f"transformers {transformers.__version__}"

    def encode(self, prompt: Prompt) -> list[int]:
        processor = self.loaded.processor
        if prompt.messages is None:
            return processor(prompt.text, verbose=False)["input_ids"]
        turns = [dict(turn) for turn in prompt.messages]
        return processor.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]

    def log_probabilities(self, ids: Sequence[int], answer: Sequence[int]) -> list[float]:
        return log_probabilities(self.loaded, ids, answer)

    def answer(self, prompt: Prompt, max_new_tokens: int) -> str:
        options = GenerationOptions.read({"max_new_tokens": max_new_tokens})
        [answer] = generate(self.loaded, [self.encode(prompt)], options, end_tokens(self.loaded.module))
        return self.loaded.processor.decode(answer, skip_special_tokens=True)


def end_tokens(module: Any) -> list[int]:
    """Return the end tokens of a module's own generation settings."""
    own = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    return [] if own is None else own if isinstance(own, list) else [own]


def as_runtime(opened: Runtime, device: torch.device) -> Runtime:
    """Return an opened artifact as a runtime that answers; a transformers module is moved to the device."""
    if opened.model is None:
        return opened
    opened.model.module.to(device).eval()
    return ModuleRuntime(opened.model)
