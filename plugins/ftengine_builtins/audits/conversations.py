"""Audit of conversations as the model is trained on them: ends of turns, thoughts, tools, trained tokens."""

from collections.abc import Iterator, Mapping
from typing import Any

from ftengine.api import Audit, AuditedData, Display, Finding, Table
from ftengine.text import capitalized, counted, listed, percent
from ftengine_builtins.audits.counting import split_name
from ftengine_builtins.audits.split_shift import EXPLAINED

ROLE, LAYOUT, UNWRITTEN = "tokens.", "layout.", "unwritten."
"""In front of a role, of a layout and of what no template writes, in the counts of task causal-lm."""
ENDS_NOTE, ENDS_ALARM = 0.99, 0.5
"""Share of examples whose end of turn is trained, below which it is said, and below which it is an alarm: a model that
mostly sees no end learns to go on."""
DROPPED_ALARM = 0.5
"""Share of thoughts that the template leaves out, above which it is an alarm: what the data teaches is mostly gone."""
SYSTEM_ALARM = 0.5
"""Share of the trained tokens that are of system prompts, which the user writes, from which it is an alarm."""
NOTES = (
    (
        "empty_thoughts",
        "answer",
        "the chat template puts an empty thought in front of {counted}; it is read, not trained on",
    ),
    (
        "ended_thoughts",
        "answer",
        "the prompt opens a thought in front of {counted} without one: the model learns to end it at once. Add "
        "thoughts to the rows, or switch them off (task.chat_template_kwargs, as enable_thinking: false)",
    ),
    (
        "untrained_calls",
        "turn",
        "no token of the calls in {counted} is trained on: the chat template writes them before the trained part",
    ),
    (
        "calls_without_tools",
        "call",
        "rows without `tools` have {counted} of tools: the model does not know which tools it may call",
    ),
    (
        "tools_left_out",
        "example",
        "the chat template does not write the `tools` of {counted}; name them in a system message",
    ),
)


class Conversations(Audit):
    """Checks which parts of all conversations are trained on: ends of turns, thoughts, tools, tokens by role."""

    name = "conversations"

    def examine(self, data: AuditedData) -> Iterator[Finding | Display]:
        by_split = {
            split: facts["counts"]
            for split, facts in data.encoded.items()
            if facts.get("counts", {}).get("conversations")
        }
        if not by_split:
            return
        for split, counts in by_split.items():
            yield from _findings(split, counts)
        yield _table({split: {**counts, "rows": data.encoded[split]["rows"]} for split, counts in by_split.items()})


def _findings(split: str, counts: Mapping[str, int]) -> Iterator[Finding]:
    name = split_name(split)
    targets = counts.get("targets", 0)
    share = counts.get("end_of_turn", 0) / targets if targets else 1.0
    if share < ENDS_NOTE:
        yield _finding(
            f"only {percent(share)} of the {name} examples train the token that ends a turn: others are cut before "
            "it, or the chat template writes none. A model that does not learn it does not stop.",
            "alarm" if share < ENDS_ALARM else "note",
            {"end_of_turn": share},
            split,
        )
    if dropped := counts.get("thoughts_dropped", 0):
        lost = dropped / counts["thoughts"]
        text = f"the chat template leaves out {dropped:,} of {counts['thoughts']:,} thoughts in {name} rows"
        level = "alarm" if lost > DROPPED_ALARM else "note"
        yield _finding(f"{text}; they are not trained on.", level, {"thoughts_dropped": lost}, split)
    others = {role: n for role, n in _roles(counts).items() if role != "assistant" and n}
    if others:
        parts = [f"{percent(n / sum(_roles(counts).values()))} {role}" for role, n in others.items()]
        text = (
            f"of the tokens that are trained on in {name} rows, {listed(parts)}: the model learns to write those too."
        )
        most = split == "train" and others.get("system", 0) >= SYSTEM_ALARM * sum(_roles(counts).values())
        if most:
            text += " Most of the loss is that of system prompts, so it says little about answers: train on answers "
            text += "alone (task.train_on: assistant)."
        explains = (*EXPLAINED, "data") if most else ()
        yield _finding(text, "alarm" if most else "note", {"tokens": others}, split, explains)
    for key, what, text in NOTES:
        if n := counts.get(key, 0):
            yield _finding(f"{text.format(counted=counted(n, what))} ({name} rows).", "note", {key: n}, split)
    for key in (key for key in counts if key.startswith(UNWRITTEN)):
        what = f"`{key.removeprefix(UNWRITTEN)}` of {counts[key]:,} messages in {name} examples"
        yield _finding(
            f"no chat template writes {what}: the model does not read it.", "note", {key: counts[key]}, split
        )


def _finding(text: str, level: Any, figures: Mapping[str, Any], split: str, explains: tuple[str, ...] = ()) -> Finding:
    of_split = {split: dict(figures)}
    return Finding(kind="data", level=level, text=capitalized(text), explains=explains, figures=of_split)


def _roles(counts: Mapping[str, int]) -> dict[str, int]:
    return {key.removeprefix(ROLE): n for key, n in counts.items() if key.startswith(ROLE)}


def _table(by_split: Mapping[str, Mapping[str, int]]) -> Table:
    roles = list(dict.fromkeys(role for counts in by_split.values() for role in _roles(counts)))
    shown = [role for role in roles if role != "assistant"]
    keys = ("rows", "conversations", "end_of_turn", "thoughts", "thoughts_dropped", "empty_thoughts", "calls")
    columns = (
        "split",
        "rows",
        "examples",
        "with end of turn",
        "thoughts",
        "dropped",
        "empty",
        "calls",
        "assistant tokens",
    )
    rows = [
        (split, *(counts.get(key, 0) for key in (*keys, *(f"{ROLE}{role}" for role in ("assistant", *shown)))))
        for split, counts in by_split.items()
    ]
    layouts: dict[str, int] = {}
    for counts in by_split.values():
        for key in (key for key in counts if key.startswith(LAYOUT)):
            layouts[key.removeprefix(LAYOUT)] = layouts.get(key.removeprefix(LAYOUT), 0) + counts[key]
    counted_layouts = listed([f"{name} ({n:,})" for name, n in layouts.items()]) if layouts else ""
    return Table(
        title="Conversations",
        columns=(*columns, *(f"{role} tokens" for role in shown)),
        rows=tuple(rows),
        caption=f"Tokens are those trained on.{f' Layouts of examples: {counted_layouts}.' if counted_layouts else ''}",
    )
