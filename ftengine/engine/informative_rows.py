"""Choosing the held-out rows for checking an artifact or an endpoint: those that reveal typical faults come first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from ftengine.api import LoadedModel, Prompt
from ftengine.api.task_sorts import can_be_asked
from ftengine.data.rows import DataRows
from ftengine.engine.finished import Run
from ftengine.engine.prepared_data import ReadyTask
from ftengine.errors import DataError
from ftengine.generation import GenerationOptions
from ftengine.text import counted

EXAMINED = 1000
"""Rows, drawn by the run's seed, among which those are looked for that show what can be lost."""
MOST_TOKENS = 48
"""Of an answer; log-probabilities of more tell no more."""


@dataclass(frozen=True)
class RowTraits:
    """Properties of a row that decide which faults it can reveal.

    Args:
        length: in tokens, or in characters where the row has no token ids.
        texts: all texts of the row.
        turns: number of messages of a conversation.
        system: whether the conversation begins with a system message.
    """

    length: int
    texts: Sequence[str]
    turns: int = 1
    system: bool = False


def informative_order(rows: Sequence[RowTraits], special: Sequence[str]) -> list[int]:
    """Return the rows' numbers: first the rows that reveal typical faults, then the others in their order.

    The first rows are the longest, the shortest, the one with most turns, and the first one each that has special
    tokens in its text, white space at the ends of a text, characters beyond ASCII, a system message, and none.
    """
    numbers = range(len(rows))
    first = [max(numbers, key=lambda i: rows[i].length), min(numbers, key=lambda i: rows[i].length)] if rows else []
    several = max((row.turns for row in rows), default=1)
    for shows in (
        lambda row: any(token in text for text in row.texts for token in special),
        lambda row: any(text != text.strip() for text in row.texts),
        lambda row: not all(text.isascii() for text in row.texts),
        lambda row: row.system,
        lambda row: not row.system,
        lambda row: row.turns == several,
    ):
        first += [i for i in numbers if shows(rows[i])][:1]
    return list(dict.fromkeys([*first, *numbers]))


def informative_prompts(
    ready: ReadyTask, rows: DataRows, loaded: LoadedModel, count: int, run: Run, *, otherwise: str = ""
) -> tuple[dict[int, Prompt], int]:
    """Return distinct prompts by row, those that reveal typical faults first, and the longest answer in tokens.

    Raises:
        DataError: as `prompts_of`.
    """
    # What stands beside tokens, as pictures do, is large.
    assert can_be_asked(ready.task)
    examined = count if ready.task.prompts_have_inputs else max(EXAMINED, count)
    prompts, longest = prompts_of(ready, rows, loaded, examined, run, otherwise=otherwise)
    numbers = list(prompts)
    special = _special(text_reader(loaded).processor)
    order = informative_order([_traits_of(prompts[i]) for i in numbers], special)[:count]
    return {numbers[i]: prompts[numbers[i]] for i in order}, longest


def text_reader(loaded: LoadedModel) -> LoadedModel:
    """Return a model with its tokenizer, where it came with a processor of text and more."""
    tokenizer = getattr(loaded.processor, "tokenizer", None)
    return replace(loaded, processor=tokenizer) if hasattr(tokenizer, "eos_token_id") else loaded


def prompts_of(
    ready: ReadyTask, rows: DataRows, loaded: LoadedModel, count: int, run: Run, *, otherwise: str = ""
) -> tuple[dict[int, Prompt], int]:
    """Return distinct prompts that leave room for an answer, by row, and the longest answer in tokens.

    Rows are taken in random order (the run's seed), so that all sources are represented.

    Raises:
        DataError: there are fewer than two; `otherwise` completes the message's advice.
    """
    longest = min(GenerationOptions.read(run.recipe.evaluation.generate.options).max_new_tokens, MOST_TOKENS)
    assert can_be_asked(ready.task)
    prompts: dict[int, Prompt] = {}
    known = set[tuple[Any, ...]]()
    for i in _drawn(rows, run.recipe.seed):
        try:
            prompt = ready.task.prompt(rows[i], loaded)
        except DataError:
            continue
        room = loaded.max_length is None or len(prompt.ids) + longest <= loaded.max_length
        key = (*prompt.ids, str(prompt.messages) if prompt.inputs else "")
        if room and prompt.ids and key not in known:
            known.add(key)
            prompts[i] = prompt
        if len(prompts) == count:
            break
    if len(prompts) < 2:
        raise DataError(
            f"{rows.source} has {counted(len(prompts), 'row')} that a model can be asked, but at least 2 "
            f"are needed. Name more rows with --data FILE{otherwise}."
        )
    return prompts, longest


def informative_examples(ready: ReadyTask, rows: DataRows, count: int, seed: int) -> dict[int, Any]:
    """Return encoded rows by number, those that reveal typical faults first, without rows that cannot be encoded."""
    drawn = list(islice(_drawn(rows, seed), max(EXAMINED, count)))
    texts = [[x for x in rows.view(i, ready.task).texts if isinstance(x, str)] for i in drawn]
    order = informative_order([RowTraits(sum(map(len, parts)), parts) for parts in texts], _special(ready.processor))
    return dict(islice(_encoded(ready, rows, [drawn[i] for i in order]), count))


def _encoded(ready: ReadyTask, rows: DataRows, numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
    for i in numbers:
        try:
            yield i, ready.task.encode(rows[i], ready.processor, max_length=ready.max_length)
        except DataError:
            continue


def _traits_of(prompt: Prompt) -> RowTraits:
    if prompt.messages is None:
        return RowTraits(len(prompt.ids), [prompt.text])
    texts = [text for turn in prompt.messages for text in texts_of(turn.get("content"))]
    return RowTraits(len(prompt.ids), texts, len(prompt.messages), prompt.messages[0]["role"] == "system")


def texts_of(content: Any) -> list[str]:
    """Return the texts of a message's content: a text, or parts."""
    parts = [{"text": content}] if isinstance(content, str) else content if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part.get("text"), str)]


def _special(processor: Any) -> list[str]:
    return [token for token in getattr(processor, "all_special_tokens", None) or () if token]


def _drawn(rows: DataRows, seed: int) -> Iterator[int]:
    """Yield row numbers in random order, determined by a seed."""
    return map(int, np.random.default_rng(seed).permutation(len(rows)))
