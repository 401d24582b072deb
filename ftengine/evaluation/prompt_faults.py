"""What a program reads in place of a prompt that was measured: the first token that differs, and the likely cause."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ftengine.api import Prompt
from ftengine.model import end_tokens

OTHER = "the chat template, or the tokenizer, differs"


def likely_faults(prompt: Prompt, processor: Any) -> Iterator[tuple[str, list[int]]]:
    """Yield what programs are known to read in place of a prompt: the fault, and the tokens."""
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
        written = processor.apply_chat_template(turns, add_generation_prompt=False, return_dict=True)["input_ids"]
        yield "the beginning of the assistant's turn is missing", list(written)
        yield "no chat template is applied", _tokens(processor, "\n".join(turn["content"] for turn in turns))
    text = processor.decode(ids)
    if _tokens(processor, text) != ids:  # then what is changed in it would say nothing
        return
    for what, end in (("a blank", " "), ("a line end", "\n")):
        yield f"{what} more stands at its end", _tokens(processor, text + end)
    if text.endswith("\n"):
        yield "a blank more stands before its last line end", _tokens(processor, f"{text[:-1]} \n")
    if (bare := text.rstrip()) != text:
        yield "blanks or line ends at its end are missing", _tokens(processor, bare)


def token_fault(prompt: Prompt, theirs: Sequence[int], processor: Any) -> str:
    """Say where a program's tokens of a prompt differ from those that were measured, and why; "" where nowhere."""
    ours, theirs = list(prompt.ids), list(theirs)
    if ours == theirs:
        return ""
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    cause = next((fault for fault, tokens in likely_faults(prompt, processor) if tokens == theirs), OTHER)
    shown = [repr(processor.decode(ids[at : at + 4])) if at < len(ids) else "nothing" for ids in (theirs, ours)]
    return f"token {at + 1} begins {shown[0]}, where {shown[1]} was measured: {cause}."


def _tokens(processor: Any, text: str) -> list[int]:
    return processor(text, add_special_tokens=False, verbose=False)["input_ids"]
