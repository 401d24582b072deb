"""Audit `template-marks`: marks of chat templates, and fields that nothing was written into."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from ftengine.api import Audit, AuditedData, Finding, View
from ftengine.text import capitalized, listed
from ftengine_builtins.audits.contradictions import LOOKED_AT
from ftengine_builtins.audits.counting import found_rows, share_within
from ftengine_builtins.audits.one_answer import any_answer

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
FIELD = re.compile(
    r"(?<![\w^_}\\$])\{\{? ?[A-Za-z][A-Za-z_ ]{2,29}\}?\}|\[[A-Z][A-Z_ ]{2,24}\d{0,3}\]|<[A-Z][A-Z_]{2,24}\d{0,3}>"
    r"|\{\{ ?[A-Za-z][\w .-]{2,39}\}\}|\$\{[a-z][\w.]{2,39}\}|<[a-z]+(?:_[a-z]+)+>|%[A-Z][A-Z_]{3,24}%"
    r"|(?<![\w^_}\\$])\{\d\}(?!\{)|Lorem ipsum dolor sit amet"
    r"|\[(?:your|insert|enter|company|customer|user|product)\b[^\[\]\n]{0,30}\]",
)
"""A field of a template, `{question}`, or a name that an anonymiser or a writer left in its place, `[NAME]`."""
NO_FIELD = re.compile(r"\[(?:/?INST|INFO|WARN\w*|ERROR|DEBUG|CLS|SEP|MASK|PAD|UNK|BOS|EOS|MUSIC|APPLAUSE)\]")
MEANT = re.compile(r"```.*?(?:```|$)|`[^`\n]+`|\\[A-Za-z]+\*?(?:\{[^{}\n]*\})+", re.DOTALL)
"""Code and commands of LaTeX, whose fields are meant."""
SURE = re.compile(
    r"[\[{<$%]+ ?(?i:your|insert|enter)\b|\[[a-z]|<(?:first|last|full|user|customer|company)_name|Lorem"
    r"|[{$%]+ ?(?i:(?:question|answer|prompt|instruction|context|response|completion) ?\}"
    r"|(?:first|last|full|customer|user|company|client|product|recipient)[_ ]?name\b"
    r"|(?:customer|user|client|contact|recipient|order|company|account|person|product)[. ])",
)
"""Fields that are surely a miss: columns of data, and what a letter says of its reader. Not `[FIRSTNAME]`, which tasks
of redaction write."""
FORMAT = 0.9
"""Share of the rows that hold a field, from which it is part of a format unless it is one of these."""
ASKED = re.compile(r"\b(?:templates?|placeholders?|jinja|latex|bash|shell|scripts?|f-strings?|variables?)\b", re.I)
"""Words of a prompt that asks for fields."""
EMPTY, OFTEN, DISTINCT, FEWEST = 0.05, 0.2, 12, 5
"""Shares of the rows, near end, that hold a field, from which it is said and, if they are surely a miss, from which it
is an alarm; and how many fields there are, at most, and rows of each, at least: in code they have many names."""


class TemplateMarks(Audit):
    """Finds marks of a chat template in messages, and fields such as `{question}` or `[NAME]` that were not filled.

    Marks that are tokens of the model begin and end turns. Fields are looked for in prompts and free answers.
    """

    name = "template-marks"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        if any(any_answer(view) for view in islice(data.splits["train"], LOOKED_AT)):
            yield from _fields(data)
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


def _fields(data: AuditedData) -> Iterator[Finding]:
    """Find fields that many rows hold, and in which nothing was written."""
    found_in, kinds = dict[tuple[str, int], set[str]](), Counter[str]()
    for split, rows in data.splits.items():
        for i, view in enumerate(rows):
            if (here := _open_fields(view)) and not ASKED.search("\n".join(view.texts)):
                found_in[split, i] = here
                kinds.update(here)
    total = sum(map(len, data.splits.values()))
    formats = {field for field, count in kinds.items() if count >= FORMAT * total and not SURE.match(field)}
    kinds = Counter({field: count for field, count in kinds.items() if field not in formats})
    by_split, sure = dict[str, list[int]](), 0
    for (split, i), here in found_in.items():
        if here - formats:
            by_split.setdefault(split, []).append(i)
            sure += any(map(SURE.match, here))
    frequent = {field: count for field, count in kinds.most_common(DISTINCT) if count >= FEWEST}
    if not frequent or len(kinds) > DISTINCT + len(frequent):
        return
    shown = listed([f"`{field}`" for field in [*frequent][:SHOWN]])
    found = found_rows(data, by_split, f"hold {shown}")
    if found.least < EMPTY:
        return
    lead = f"fill in fields that were left as they are: {found.text}"
    text = (
        f"{capitalized(lead)} (e.g. {found.places[0]}). A model learns to read, and to write, the field's name: write "
    )
    text += "what belongs there, made-up values where the true ones are private."
    alarm = share_within(sure, total)[0] >= OFTEN
    explains = ("quality", "learning", "splits", "worse") if alarm else ()
    yield Finding(kind="data", level="alarm" if alarm else "note", text=text, brief=lead, explains=explains,
                  figures={"fields": frequent, "rows": found.counts}, places=found.places)  # fmt: skip


def _open_fields(view: View) -> set[str]:
    """Return the fields of a row but those that its answer takes over from its prompt, and tags that are closed."""
    text = "\n".join(view.texts)
    here = {field for field in FIELD.findall(MEANT.sub("", text)) if not NO_FIELD.fullmatch(field)} - {*MARKS}
    prompt, answer = ("\n".join(map(str, of)) for of in (view.inputs, [any_answer(view)])) if here else ("", "")
    return {
        field for field in here if f"{field[0]}/{field[1:]}" not in text and not (field in prompt and field in answer)
    }


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
