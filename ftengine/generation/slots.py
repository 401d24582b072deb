"""Continuous batching: a fixed number of slots, each of which takes the next prompt as soon as its answer has ended.

A prompt is computed once for all of its answers, common prefixes of prompts are computed once, and nothing is padded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ftengine.generation.sampler import Answer, Growing, Sampler
from ftengine.model.tokens import common_prefix

if TYPE_CHECKING:
    from torch import Tensor

    from ftengine.api import Decoder

READ = 1024
"""Tokens of prompts that are read in one step; a longer prompt is read by itself."""


@dataclass
class _Prompt:
    """A prompt and those of its answers that have not begun.

    Args:
        sequence: its number in the decoder.
        logits: (1, vocabulary) behind it; None until it was read.
    """

    ids: Sequence[int]
    waiting: deque[int]
    sequence: int = -1
    logits: Tensor | None = None


@dataclass
class Slots:
    """Answers prompts with a `Decoder`.

    Args:
        prompts: token ids, each with at least one.
        samples: the number of the answer to each prompt.
        longest: maximal number of new tokens of an answer.
        stop: tokens that end an answer.
        slots: number of answers that are generated at a time.
        report: called with the number of an answer and each of its new tokens, without the end token.
    """

    decoder: Decoder
    sampler: Sampler
    prompts: Sequence[Sequence[int]]
    samples: Sequence[int]
    longest: int
    stop: frozenset[int]
    slots: int
    report: Callable[[int, int], None] | None = None
    _growing: dict[int, tuple[Growing, int]] = field(default_factory=dict)
    _reading: list[_Prompt] = field(default_factory=list)
    _before: tuple[Sequence[int], int] = ((), -1)
    """The prompt that was read last, and its sequence."""

    def answers(self) -> list[Answer]:
        """Return an answer to each prompt."""
        import torch

        self._before = (), self.decoder.fork(-1, 0)
        answers, queue = [Answer() for _ in self.prompts], deque(self._by_prompt())
        while queue or self._growing or self._reading:
            grown = list(self._growing)
            for position in grown:
                growing, sequence = self._growing[position]
                self.decoder.append(sequence, growing.answer.tokens[-1:])
            read, rows = self._admit(queue), []
            if grown or read:
                logits = self.decoder.compute()
                for number, prompt in enumerate(read, len(grown)):
                    prompt.logits = logits[number : number + 1].clone()  # the others' are not kept with it
                rows = [logits[: len(grown)]]
            begun, beginnings = self._begin(len(grown))
            chosen = self.sampler.choose(
                torch.cat([*rows, *beginnings]), [self._growing[i][0] for i in (*grown, *begun)]
            )
            for position, token in zip([*grown, *begun], chosen, strict=True):
                self._add(position, token, answers)
        self.decoder.free(self._before[1])
        return answers

    def _by_prompt(self) -> list[_Prompt]:
        """Return the prompts, each once, those that begin alike beside each other."""
        of: dict[tuple[int, ...], _Prompt] = {}
        for position, ids in enumerate(self.prompts):
            key = tuple(ids)
            of.setdefault(key, _Prompt(key, deque())).waiting.append(position)
        return [of[key] for key in sorted(of)]

    def _admit(self, queue: deque[_Prompt]) -> list[_Prompt]:
        """Append as many prompts as there will be free slots for to what is computed next, and return them."""
        free = self.slots - len(self._growing) - sum(len(prompt.waiting) for prompt in self._reading)
        admitted, tokens = list[_Prompt](), 0
        while queue and free > 0:
            shared = common_prefix(self._before[0], queue[0].ids[:-1])  # the next token follows one of its own
            if tokens and tokens + len(queue[0].ids) - shared > READ:
                break
            prompt = queue.popleft()
            prompt.sequence = self.decoder.fork(self._before[1], shared)
            self.decoder.append(prompt.sequence, prompt.ids[shared:])
            self.decoder.free(self._before[1])
            self._before = prompt.ids, self.decoder.fork(prompt.sequence, len(prompt.ids))
            admitted.append(prompt)
            tokens += len(prompt.ids) - shared
            free -= len(prompt.waiting)
        self._reading += admitted
        return admitted

    def _begin(self, grown: int) -> tuple[list[int], list[Tensor]]:
        """Begin answers to prompts that were read, in free slots; return their positions and logits."""
        begun: list[int] = []
        rows: list[Tensor] = []
        for prompt in list(self._reading):
            while prompt.waiting and grown + len(begun) < self.slots:
                position = prompt.waiting.popleft()
                growing = self.sampler.begin(prompt.ids, self.samples[position])
                self._growing[position] = growing, self.decoder.fork(prompt.sequence, len(prompt.ids))
                begun.append(position)
                assert prompt.logits is not None
                rows.append(prompt.logits)
            if not prompt.waiting:
                self._reading.remove(prompt)
                self.decoder.free(prompt.sequence)
        return begun, rows

    def _add(self, position: int, token: int, answers: list[Answer]) -> None:
        """Add a token to an answer, and free its slot where it has ended."""
        growing, sequence = self._growing[position]
        answer = growing.answer
        if token in self.stop:
            answer.ended_by = token
        else:
            answer.tokens.append(token)
            if self.report is not None:
                self.report(position, token)
        if token in self.stop or len(answer.tokens) == self.longest:
            answers[position] = answer
            del self._growing[position]
            self.decoder.free(sequence)
