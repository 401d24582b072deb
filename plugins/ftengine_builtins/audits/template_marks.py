"""Audit `template-marks`."""

import re
from collections import Counter
from collections.abc import Iterator

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import listed
from ftengine_builtins.audits.counting import SHOWN_PLACES, counted, share_within

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
    """Marks of a chat template, or special tokens of the model's, in what messages say: they become tokens of turns."""

    name = "template-marks"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        encoded = data.encoded.get("train", {})
        if not encoded.get("counts", {}).get("conversations"):
            return  # a text that is read as it stands may well be written in a template
        own = [x for x in encoded.get("special_tokens", ()) if len(x) >= LEAST and not x.isalnum()]
        marks = {mark for mark in (*MARKS, *own) if not MEDIA.search(mark)}
        pattern = re.compile("|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)))
        found: dict[str, list[int]] = {}
        kinds = Counter[str]()
        for split, rows in data.splits.items():
            for i, text in enumerate(rows.texts()):
                if here := set(pattern.findall(text)):
                    found.setdefault(split, []).append(i)
                    kinds.update(here)
        if not found:
            return
        counts, of = (
            {name: len(rows) for name, rows in found.items()},
            {name: len(x) for name, x in data.splits.items()},
        )
        places = [data.splits[split].where(row) for split, rows in found.items() for row in rows[:SHOWN_PLACES]]
        shown = listed([f"`{mark}`" for mark, _ in kinds.most_common(SHOWN)])
        lead = f"take the marks of chat templates out of the messages: {counted(counts, of, f'hold {shown}')}"
        text = f"{lead[:1].upper()}{lead[1:]} (e.g. {places[0]}). The chat template writes its own marks around each "
        text += "message, and those within are read as if other turns began and ended there."
        yield Finding(
            kind="data",
            level="alarm" if share_within(sum(counts.values()), sum(of.values()))[0] >= ALARM else "note",
            text=text,
            brief=lead,
            explains=("quality",),
            figures={"marks": dict(kinds.most_common(SHOWN)), "rows": counts},
            places=tuple(places[:SHOWN_PLACES]),
        )
