"""Audits of the encoded data: cut examples, unknown tokens, unread keys."""

from collections import Counter
from collections.abc import Iterator, Mapping

from ftengine.api import Audit, AuditedData, Display, Finding, Table
from ftengine.errors import did_you_mean
from ftengine.text import listed, percent
from ftengine_builtins.audits.counting import counted, split_name

SHOWN = ("50", "95", "99", "100")


class Lengths(Audit):
    """Reports how long examples are in tokens, and what is cut or cannot be trained on."""

    name = "lengths"

    def examine(self, data: AuditedData) -> Iterator[Finding | Display]:
        rows = {split: len(rows) for split, rows in data.splits.items()}
        for key, what in (
            ("truncated", "are cut to the length limit"),
            ("untrained_rows", "have nothing to train on and are left out"),
            ("skipped", "cannot be used and are left out"),
        ):
            if cases := {split: counts[key] for split, counts in data.encoded.items() if counts.get(key)}:
                reasons = [reason for counts in data.encoded.values() for reason in counts.get(f"{key}_first", ())]
                of = {split: rows[split] + (count if key == "skipped" else 0) for split, count in cases.items()}
                if key == "untrained_rows":
                    reasons = _untrained(data)
                first = f", e.g. {reasons[0].removesuffix('.')}" if reasons else ""
                text = f"{counted(cases, of, what)}{first}."
                yield Finding(kind="data", level="note", text=text, figures={key: cases}, places=tuple(reasons[:5]))
        if any(counts["percentiles"]["5"] < counts["longest"] for counts in data.encoded.values()):
            yield _table(data)


def _untrained(data: AuditedData) -> list[str]:
    """Return the reasons why rows are not trained on, the most frequent first."""
    reasons = Counter[str]()
    for counts in data.encoded.values():
        reasons.update(counts.get("untrained_reasons", {}))
    return [f"{why} in {count:,}" for why, count in reasons.most_common()]


def _table(data: AuditedData) -> Table:
    cells = []
    for split, counts in data.encoded.items():
        whole = counts.get("untruncated") or {**counts["percentiles"], "100": counts["longest"]}
        cells.append((split, *(whole[share] for share in SHOWN), counts["truncated"], counts.get("limit")))
    columns = ("split", "median", "95 %", "99 %", "longest", "truncated", "model limit")
    cut = [counts for counts in data.encoded.values() if counts["truncated"]]
    caption = f"Lengths are those {'before' if all(counts.get('untruncated') for counts in cut) else 'after'} cutting."
    return Table(title="Lengths", columns=columns, rows=tuple(cells), caption=caption if cut else "")


NOTE, ALARM = 0.001, 0.05
"""Share of a split's tokens that are unknown, from which it is said, and from which it is an alarm: one token in twenty
is about one in every sentence."""


class UnknownTokens(Audit):
    """Finds text that the tokenizer has no token for, which the model reads as [UNK]."""

    name = "unknown-tokens"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        shares = {
            split: counts["unknown"] / counts["tokens"]
            for split, counts in data.encoded.items()
            if counts.get("unknown") and counts["unknown"] >= NOTE * counts["tokens"]
        }
        if not shares:
            return
        parts = [f"{percent(share)} of the {split_name(split)} tokens" for split, share in shares.items()]
        places = [place for split in shares for place in data.encoded[split]["unknown_first"]]
        text = f"{listed(parts)} are [UNK] (e.g. in {places[0]}): the tokenizer has no token for this text, so "
        text += "the model cannot distinguish such texts."
        level = "alarm" if max(shares.values()) >= ALARM else "note"
        yield Finding(kind="data", level=level, text=text, figures={"shares": shares}, places=tuple(places[:5]))


INSTRUCTIONS = frozenset(
    {"weight", "weights", "loss_weight", "sample_weight", "loss", "mask", "loss_mask", "train", "trainable", "tools"}
)
"""Keys by which other tools are told what to train on, how much, or with which functions."""


BESIDE_A_CHAT = ("tools", "functions", "system", "chat_template_kwargs")
"""Columns that are read beside a conversation."""


class UnreadKeys(Audit):
    """Finds unread columns and keys of messages that look like an instruction for training.

    Beside conversations also columns with nearly the name of a column that is read.
    """

    name = "unread-keys"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        encoded = data.encoded.get("train", {})
        unread = encoded.get("unread", {})
        yield from _misnamed(unread) if encoded.get("counts", {}).get("conversations") else ()
        keys = {key: place for key, place in unread.items() if key.rpartition(".")[2].lower() in INSTRUCTIONS}
        if not keys:
            return
        named = [
            f"`{name}` in `{column}`" if column else f"column `{name}`"
            for column, _, name in (key.rpartition(".") for key in keys)
        ]
        looks = "looks like an instruction" if len(keys) == 1 else "look like instructions"
        text = f"{', '.join(named)} {looks} for training, but nothing reads {'it' if len(keys) == 1 else 'them'}"
        places, figures = tuple(keys.values()), {"keys": sorted(keys)}
        text = f"{text[0].upper()}{text[1:]} (e.g. {places[0]}): training ignores it."
        yield Finding(kind="data", level="note", text=text, figures=figures, places=places)


def _misnamed(unread: Mapping[str, str]) -> Iterator[Finding]:
    """Yield unread columns beside a chat, each with the column that is probably meant."""
    for column, place in unread.items():
        if "." not in column and column not in BESIDE_A_CHAT and (near := did_you_mean(column, BESIDE_A_CHAT)):
            text = f"Column `{column}` does not affect the model's input (e.g. {place}).{near}"
            yield Finding(kind="data", level="note", text=text, figures={"keys": [column]}, places=(place,))
