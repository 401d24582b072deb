"""Audit `template-marks`."""

import re
from collections import Counter
from collections.abc import Iterator

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import capitalized, listed
from ftengine_builtins.audits.counting import found_rows

MARKS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<start_of_turn>", "<end_of_turn>", "<|turn>", "<turn|>"),
    *("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|start|>", "<|message|>", "<|channel|>", "<|return|>"),
    *("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
)
"""Marks of turns in the chat templates of common models."""
LEAST = 3
"""Characters of a special token that is looked for."""
MEDIA = re.compile(r"image|img|video|audio|vision|speech|media|object_ref|quad|box", re.IGNORECASE)
"""What is in a token that a content may well have: the place of a picture, say."""
ALARM = 0.02
"""Share of the rows, at the interval's near end, from which it is an alarm: one text about templates is none."""
SHOWN = 3


class TemplateMarks(Audit):
    """Finds marks of a chat template in messages; those that are tokens of the model begin and end turns."""

    name = "template-marks"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        encoded = data.encoded.get("train", {})
        if not encoded.get("counts", {}).get("conversations"):
            return  # a text that is read as it stands may well be written in a template
        own = {x for x in encoded.get("special_tokens", ()) if len(x) >= LEAST and not x.isalnum()}
        marks = {mark for mark in (*MARKS, *own) if not MEDIA.search(mark)}
        pattern = re.compile("|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)))
        by_split: dict[bool, dict[str, list[int]]] = {True: {}, False: {}}
        kinds = {True: Counter[str](), False: Counter[str]()}
        for split, rows in data.splits.items():
            for i, text in enumerate(rows.texts()):
                if here := set(pattern.findall(text)):
                    are_own = bool(here & own)
                    by_split[are_own].setdefault(split, []).append(i)
                    kinds[are_own].update(here & own or here)
        for are_own, found in by_split.items():
            if found:
                yield _finding(data, found, dict(kinds[are_own].most_common(SHOWN)), are_own=are_own)


def _finding(data: AuditedData, by_split: dict[str, list[int]], marks: dict[str, int], *, are_own: bool) -> Finding:
    found = found_rows(data, by_split, f"hold {listed([f'`{mark}`' for mark in marks])}")
    lead = f"take the marks of chat templates out of the messages: {found.text}"
    text = f"{capitalized(lead)} (e.g. {found.places[0]}). "
    if are_own:
        text += "The chat template writes its own marks around each message, and those within are read as if other "
        text += "turns began and ended there."
    else:
        text += "The tokenizer has no such tokens, so they are read as plain text: right only in messages about "
        text += "them."
    alarm = are_own and found.least >= ALARM
    return Finding(
        kind="data",
        level="alarm" if alarm else "note",
        text=text,
        brief=lead,
        explains=("quality",) if alarm else (),
        figures={"marks": marks, "rows": found.counts, "own": are_own},
        places=found.places,
    )
