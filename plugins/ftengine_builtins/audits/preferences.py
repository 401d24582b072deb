"""Audits of preferences: whether length predicts the chosen answer, equal answers, contrary judgements."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, AuditedRows, Finding, View
from ftengine.text import capitalized, counted, percent, quoted, short
from ftengine_builtins.audits.contradictions import ALARM, LOOKED_AT, contradicting, hashed
from ftengine_builtins.audits.counting import SHOWN_PLACES, share_within
from ftengine_builtins.audits.row_parts import parts_of
from ftengine_builtins.audits.word_scores import tf_idf

SURELY, MOSTLY = 0.6, 0.8
"""Shares of the pairs, at the interval's near end, from which the longer, or shorter, answer is said to be the chosen
one, and from which that is an alarm: a loss then mostly learns how long to write."""


class PreferenceLengths(Audit):
    """Reports how often the longer of two answers is the chosen one."""

    name = "preference-lengths"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        counts = data.encoded.get("train", {}).get("counts", {})
        longer, shorter = counts.get("longer_chosen", 0), counts.get("longer_rejected", 0)
        total = longer + shorter
        if not total:
            return
        most, name = max((longer, "longer"), (shorter, "shorter"))
        low, _ = share_within(most, total)
        if low < SURELY:
            return
        text = f"The {name} answer is the chosen one in {percent(most / total)} of {total:,} training pairs of unequal "
        text += "length: a model may learn only the length. Compare accuracy with what length alone "
        text += "reaches, or balance the pairs."
        figures = {"share": most / total, "pairs": total, "preferred": name}
        yield Finding(kind="data", level="alarm" if low >= MOSTLY else "note", text=text, figures=figures)


EQUAL, MOSTLY_EQUAL, ALL_EQUAL = 0.01, 0.1, 0.95
"""Shares of the pairs whose answers differ by white space or case alone, from which that is said, and, at the
interval's near end, from which it is an alarm; and of positives that are their anchor, from which that is meant."""


SAMPLE, NEAR, REPEATED, OFTEN = 500, 0.6, 0.01, 0.05
"""Positives that are compared, the cosine of their words from which two differ in little, and the shares of all pairs
of rows of which they do, from which that is said and from which it is an alarm: in a batch of 32 rows, one row in three
then meets such a positive among the 31 others, or each meets one or two."""
FEWEST_POSITIVES, FEWEST_WORDS, MOST_ROWS = 40, 8, 5_000
"""Distinct positives below which they are not compared, words of half of them, as shorter ones have the same few words
by chance, and training rows that are read, the first."""


RUN, SHIFTED, COMMON = 8, 5, 3
"""Words of a run that a positive and its negative share, by how many words it has to lie elsewhere, and the most rows
that share one: a phrase of more rows is of the site that all are from."""
OVERLAP, MOSTLY_OVERLAP = 0.1, 0.5
"""Shares of the rows, at the interval's near end, from which that is said, and from which it is an alarm."""


class EqualAnswers(Audit):
    """Finds pairs whose answers, or positives and negatives, differ by white space or case alone, or not at all.

    Also positives that are their own anchor, and ones that many anchors have but for a few words: in a batch, right
    answers are then taken for wrong ones. And negatives that share text with their positive.
    """

    name = "equal-answers"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        yield from _anchors(data)
        yield from _overlapping(data)
        places, pairs, triplets = list[str](), 0, False
        for rows in data.splits.values():
            if not any(_sides(view) for view in islice(rows, LOOKED_AT)):
                continue
            for i, view in enumerate(rows):
                if (both := _sides(view)) is None:
                    continue
                pairs += 1
                triplet = view.target is None
                if (triplet or both[0] != both[1]) and _folded(both[0]) == _folded(both[1]):
                    places.append(rows.where(i))
                    triplets = triplets or triplet
        if not places or len(places) < EQUAL * pairs:
            return
        share, alarm = len(places) / pairs, share_within(len(places), pairs)[0] >= MOSTLY_EQUAL
        brief = f"leave out pairs whose answers differ by white space or case alone: {percent(share)} of the pairs do "
        brief += f"({len(places):,} of {pairs:,})"
        if triplets:
            brief = f"leave out rows whose negative is their positive: {percent(share)} of {pairs:,} rows"
        yield Finding(
            kind="data",
            level="alarm" if alarm else "note",
            text=f"{capitalized(brief)}, e.g. {places[0]}.",
            brief=brief,
            explains=("quality", "learning", "rows", "over-fitting") if alarm else (),
            figures={"equal": len(places), "pairs": pairs, "share": share},
            places=tuple(places[:SHOWN_PLACES]),
        )


def _anchors(data: AuditedData) -> Iterator[Finding]:
    """Find positives of training that are their anchor, and ones that differ in little from many others."""
    rows = data.splits["train"]
    if not any("positives" in parts_of(view) for view in islice(rows, LOOKED_AT)):
        return
    pairs = [(i, parts["anchors"], parts["positives"]) for i, view in enumerate(islice(rows, MOST_ROWS))
             if (parts := parts_of(view)).keys() >= {"anchors", "positives"}]  # fmt: skip
    equal = [i for i, anchor, positive in pairs if _folded(anchor) == _folded(positive)]
    if pairs and len(equal) >= EQUAL * len(pairs):
        share, low = len(equal) / len(pairs), share_within(len(equal), len(pairs))[0]
        alarm = low >= MOSTLY_EQUAL and share < ALL_EQUAL
        brief = f"leave out rows whose positive is their anchor: {percent(share)} of {len(pairs):,} training rows"
        text = f"{capitalized(brief)}, e.g. {rows.where(equal[0])}. A text is near to itself without any training."
        if share >= ALL_EQUAL:
            text += " Unsupervised SimCSE (Gao et al. 2021) has such rows: then dropout has to be above 0."
        yield Finding(kind="data", level="alarm" if alarm else "note", text=text, brief=brief,
                      explains=("quality", "learning", "rows", "over-fitting", "splits") if alarm else (),
                      figures={"anchors": len(equal), "pairs": len(pairs), "share": share},
                      places=tuple(rows.where(i) for i in equal[:SHOWN_PLACES]))  # fmt: skip
    positives = list(dict.fromkeys(positive for _, anchor, positive in pairs if anchor != positive))
    chosen = np.random.default_rng(0).permutation(len(positives))[:SAMPLE]
    if len(chosen) < FEWEST_POSITIVES or np.median([len(text.split()) for text in positives]) < FEWEST_WORDS:
        return
    features = tf_idf([positives[i] for i in chosen])
    near = (features @ features.T).toarray() >= NEAR
    share = float((near.sum() - len(chosen)) / (len(chosen) * (len(chosen) - 1)))
    if share < REPEATED:
        return
    first = int(near.sum(1).argmax())
    examples = [positives[chosen[i]] for i in np.flatnonzero(near[first])[:2]]
    brief = (
        f"divide positives that many rows share: of two rows drawn at random, {percent(share)} have nearly the same "
    )
    brief += f"positive ({' and '.join(quoted(short(text)) for text in examples)})"
    text = f"{capitalized(brief)}. In a batch, right answers of other rows are then taken for wrong ones. Give each of "
    text += "them a number in a column and name it (task.same), or keep one wording of each."
    alarm = share >= OFTEN
    yield Finding(kind="data", level="alarm" if alarm else "note", text=text, brief=brief,
                  explains=("quality", "learning", "rows", "over-fitting") if alarm else (),
                  figures={"near_positives": share, "positives": len(positives)})  # fmt: skip


def _overlapping(data: AuditedData) -> Iterator[Finding]:
    """Find negatives of training that share a run of words with their positive, elsewhere in the text.

    A hard negative that differs from its positive in a few words has the others at the same place.
    """
    rows = data.splits["train"]
    if not any("negatives" in parts_of(view) for view in islice(rows, LOOKED_AT)):
        return
    shared = list[set[tuple[str, ...]]]()
    for view in islice(rows, MOST_ROWS):
        parts = parts_of(view)
        if parts.keys() >= {"positives", "negatives"}:
            here, there = (_runs(parts[name]) for name in ("positives", "negatives"))
            shared.append({run for run in here.keys() & there if abs(here[run] - there[run]) > SHIFTED})
        else:
            shared.append(set())
    counts = Counter(run for runs in shared for run in runs)
    found = [i for i, runs in enumerate(shared) if any(counts[run] <= COMMON for run in runs)]
    low = share_within(len(found), len(shared))[0]
    if low < OVERLAP:
        return
    share = percent(len(found) / len(shared))
    brief = f"look at the negatives, are they chunks of their positives' documents? In {share} of"
    brief += f" {len(shared):,} rows they share {RUN} words in a row or more with their positive"
    yield Finding(kind="data", level="alarm" if low >= MOSTLY_OVERLAP else "note",
                  text=f"{capitalized(brief)}, e.g. {rows.where(found[0])}. A negative that answers the query teaches "
                  "the opposite: draw negatives from other documents.",
                  brief=brief, explains=("quality", "learning") if low >= MOSTLY_OVERLAP else (),
                  figures={"overlapping": len(found), "rows": len(shared)},
                  places=tuple(rows.where(i) for i in found[:SHOWN_PLACES]))  # fmt: skip


def _runs(text: str) -> dict[tuple[str, ...], int]:
    """Return the runs of RUN words of a text, with the position of each."""
    words = text.casefold().split()
    return {tuple(words[i : i + RUN]): i for i in range(len(words) - RUN + 1)}


class ContraryPreferences(Audit):
    """Finds two answers to one prompt that are preferred both ways, and answers judged both good and bad."""

    name = "contrary-preferences"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        if not any(_judgement(view) for rows in data.splits.values() for view in islice(rows, LOOKED_AT)):
            return
        hashes = {split: _compared(rows) for split, rows in data.splits.items()}
        clash = contradicting(data, *({name: both[i] for name, both in hashes.items()} for i in (0, 1)))
        if clash is None:
            return
        share = clash.rows / sum(map(len, data.splits.values()))
        text = f"{counted(clash.texts, 'comparison is', 'comparisons are')} in the data both ways round "
        text += f"({clash.rows:,} rows, e.g. {clash.places[0]}): one of them must be wrong."
        figures = {"comparisons": clash.texts, "rows": clash.rows, "share": share}
        alarm = share >= ALARM
        brief = f"agree on one judgement: {counted(clash.texts, 'comparison is', 'comparisons are')} in the data both "
        brief += f"ways round ({clash.rows:,} rows)"
        level, explains = (
            ("alarm", ("quality", "labels", "learning", "rows", "over-fitting")) if alarm else ("note", ())
        )
        yield Finding(
            kind="labels", level=level, text=text, brief=brief, explains=explains, figures=figures, places=clash.places
        )


def _compared(rows: AuditedRows) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows,) hashes of the compared answers, and of the judgement; 0 for none."""
    judged = ((view, _judgement(view)) for view in rows)
    pairs = (
        (hashed([list(view.inputs), *judgement[0]]), hashed(judgement[1])) if judgement else (0, 0)
        for view, judgement in judged
    )
    hashes = np.fromiter(pairs, [("compared", np.int64), ("said", np.int64)], len(rows))
    return hashes["compared"], hashes["said"]


def _sides(view: View) -> tuple[Any, Any] | None:
    """Return the chosen and the rejected answer, or the positive and the negative; None if a row has none."""
    target = view.target
    if target is None and len(view.inputs) > 2:
        parts = parts_of(view)
        return (parts["positives"], parts["negatives"]) if "negatives" in parts and "positives" in parts else None
    is_pair = isinstance(target, dict) and target.keys() == {"chosen", "rejected"}
    return (target["chosen"], target["rejected"]) if is_pair else None


def _folded(value: Any) -> Any:
    """Return an answer, or messages, in lower case with single spaces."""
    if isinstance(value, str):
        return " ".join(value.casefold().split())
    if isinstance(value, dict):
        return {key: _folded(item) for key, item in value.items()}
    return [_folded(item) for item in value] if isinstance(value, (list, tuple)) else value


def _judgement(view: View) -> tuple[list[str], Any] | None:
    """Return the answers of a row and which is preferred; None if it compares none."""
    target = view.target
    if not isinstance(target, dict):
        return None
    if target.keys() == {"completion", "desirable"}:
        return [repr(target["completion"])], target["desirable"]
    if target.keys() != {"chosen", "rejected"}:
        return None
    return sorted(map(repr, target.values())), target["chosen"]
