"""Finding how a program's reading of a prompt differs from the evaluation: the first token, and the likely cause."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from jinja2 import TemplateError

from ftengine.api import Prompt
from ftengine.chat import end_tokens

OTHER = "the chat template, or the tokenizer, differs"
POWERS = tuple(2**k for k in range(4, 16))
"""Lengths that prompts are cut to."""
USUAL_SYSTEM = "You are a helpful assistant."


def likely_faults(prompt: Prompt, processor: Any, lengths: Sequence[int] = ()) -> Iterator[tuple[str, list[int]]]:
    """Yield known faults of programs in reading a prompt: a description, and the tokens.

    Args:
        lengths: lengths to which prompts may be cut; empty tries powers of two.
    """
    ids = list(prompt.ids)
    begin = getattr(processor, "bos_token_id", None)
    if begin is not None:
        yield "a second BOS stands in front" if ids[:1] == [begin] else "a BOS stands in front", [begin, *ids]
        if ids[:1] == [begin]:
            yield "the BOS in front is missing", ids[1:]
    if prompt.messages is not None:
        if (ends := set(end_tokens(processor))) & set(ids):
            yield "the tokens that end turns are missing", [token for token in ids if token not in ends]
        turns = [dict(turn) for turn in prompt.messages]
        yield "the beginning of the assistant's turn is missing", _templated(processor, turns, answer=False)
        yield "no chat template is applied", _tokens(processor, "\n".join(turn["content"] for turn in turns))
        for fault, other in _other_turns(turns):
            with suppress(TemplateError):  # which refuses such turns
                yield fault, _templated(processor, other)
    for length in lengths or POWERS:
        if 0 < length < len(ids):
            yield f"its beginning is lost: the last {length:,} tokens are read", ids[-length:]
            yield f"its end is lost: the first {length:,} tokens are read", ids[:length]
    text = processor.decode(ids)
    if _tokens(processor, text) != ids:  # then what is changed in it would say nothing
        return
    for what, end in (("a blank", " "), ("a line end", "\n")):
        yield f"{what} more stands at its end", _tokens(processor, text + end)
    if text.endswith("\n"):
        yield "a blank more stands before its last line end", _tokens(processor, f"{text[:-1]} \n")
    if (bare := text.rstrip()) != text:
        yield "blanks or line ends at its end are missing", _tokens(processor, bare)


def _other_turns(turns: Sequence[dict[str, str]]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield known ways in which programs change a conversation."""
    system = [turn for turn in turns if turn["role"] == "system"]
    rest = [turn for turn in turns if turn["role"] != "system"]
    if system:
        yield "the system message is lost", rest
    else:
        yield "a blank system message stands in front", [{"role": "system", "content": ""}, *turns]
        yield "a system message of its own stands in front", [{"role": "system", "content": USUAL_SYSTEM}, *turns]
    if len(rest) > 1:
        yield "earlier turns are lost: the last one is read", [*system, rest[-1]]
    stripped = [{**turn, "content": turn["content"].strip()} for turn in turns]
    if stripped != list(turns):
        yield "blanks around its messages are missing", stripped


def token_fault(prompt: Prompt, theirs: Sequence[int], processor: Any, cause: str = "") -> str:
    """Describe where a program's tokens of a prompt differ from the evaluation's, and why; "" if they are equal.

    Args:
        cause: the cause, if known; "" searches for a known fault with these tokens.
    """
    ours, theirs = list(prompt.ids), list(theirs)
    if ours == theirs:
        return ""
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    faults = likely_faults(prompt, processor, [len(theirs)])
    cause = cause or next((fault for fault, tokens in faults if tokens == theirs), OTHER)
    vocabulary = len(processor)
    shown = [
        repr(processor.decode([token for token in ids[at : at + 4] if token < vocabulary]))
        if at < len(ids)
        else "nothing"
        for ids in (theirs, ours)
    ]
    return f"token {at + 1} begins {shown[0]}, where {shown[1]} was measured: {cause}."


def _templated(processor: Any, turns: Sequence[dict[str, str]], *, answer: bool = True) -> list[int]:
    """Return the token ids of a conversation in the template, with or without the beginning of an answer."""
    return list(processor.apply_chat_template(turns, add_generation_prompt=answer, return_dict=True)["input_ids"])


def _tokens(processor: Any, text: str) -> list[int]:
    return processor(text, add_special_tokens=False, verbose=False)["input_ids"]
