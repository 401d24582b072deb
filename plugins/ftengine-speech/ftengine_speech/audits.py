"""Audit `recordings`: what is wrong with recordings and their transcripts, from the data alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, AuditedRows, Display, Finding, Table
from ftengine.errors import DataError
from ftengine.text import counted, percent
from ftengine_speech.audio import Audio, LazyAudio
from ftengine_speech.noise import signal_to_noise

TASKS = ("speech-to-text", "speech-ctc")
MOST, BLOCK = 2000, 100
"""Recordings of a split that are looked at, in blocks evenly over it: transcripts are compared with neighbours'."""
SHOWN = 5
FEWEST = 20
"""Recordings below which nothing is said of what they have in common."""
USUAL = (4.0, 30.0)
"""Characters a second of slow and of fast speech, in letters; of a whole set's median."""
FACTOR = 2.5
"""How many times the set's median rate of characters a recording has that is told."""
UNRELATED, RELATED, MORE = 0.3, 0.6, 0.3
"""Rank correlation of length and characters: below the first they are unrelated; where the transcripts of the next or
previous row correlate with at least the second, and by the third more, transcripts are shifted. Of 24 short commands
it is 0.6, of read sentences 0.9 and more."""
QUIET = -50.0
"""dB of the loudest frames, relative to full scale, from which a recording counts as hardly audible."""


@dataclass(frozen=True)
class Recording:
    """What an audit keeps of a recording."""

    row: int
    seconds: float
    characters: int
    snr: float
    rate: int
    clipped: bool
    level: float


class Recordings(Audit):
    """Finds clipped and hardly audible recordings, rates of speech that no one has, and transcripts of other rows."""

    name = "recordings"

    def examine(self, data: AuditedData) -> Iterator[Finding | Display]:
        if not data.task.startswith(TASKS):
            return
        kept = {name: list(_looked_at(rows)) for name, rows in data.splits.items()}
        yield _table(kept)
        yield from _several(data, kept, "are clipped: their level is at full scale for long", lambda x: x.clipped)
        yield from _several(data, kept, f"are hardly audible, below {QUIET:g} dB", lambda x: x.level < QUIET)
        for name, recordings in kept.items():
            shifted = list(_shifted(data, name, recordings))
            yield from shifted or _rates(data, name, recordings)


def _looked_at(rows: AuditedRows) -> Iterator[Recording]:
    numbers: Sequence[int] = range(len(rows))
    if len(rows) > MOST:
        starts = np.linspace(0, len(rows) - BLOCK, MOST // BLOCK).round().astype(int).tolist()
        numbers = [start + i for start in starts for i in range(BLOCK)]
    for number, view in zip(numbers, rows.select(numbers), strict=True):
        if not isinstance(view.inputs, LazyAudio) or not view.texts:
            continue
        try:
            audio: Audio = view.inputs[0]
        except DataError:  # named by encoding
            continue
        level = 10 * np.log10(max(1e-12, float(np.square(audio.samples).max(initial=0.0))))
        letters = sum(map(str.isalnum, view.texts[0]))
        yield Recording(number, audio.seconds, letters, signal_to_noise(audio), audio.rate, audio.clipped, float(level))


def _table(kept: Mapping[str, Sequence[Recording]]) -> Table:
    rows: list[tuple[str | int | float | None, ...]] = []
    for name, recordings in kept.items():
        if recordings:
            seconds, noise = ([getattr(x, key) for x in recordings] for key in ("seconds", "snr"))
            rates = sorted({x.rate for x in recordings})
            shown = ", ".join(f"{rate} Hz" for rate in rates[:4]) + (", …" if len(rates) > 4 else "")
            middle = f"{np.median(seconds):.1f} s", f"{max(seconds):.1f} s", f"{np.median(noise):.0f} dB"
            rows.append((name, len(recordings), f"{sum(seconds) / 60:.1f} min", *middle, shown))
    columns = ("split", "recordings", "in all", "median", "longest", "median SNR", "rates")
    return Table(title="Recordings", columns=columns, rows=tuple(rows))


def _several(data: AuditedData, kept: Mapping[str, Sequence[Recording]], what: str, found: Any) -> Iterator[Finding]:
    by_split = {name: [x.row for x in some if found(x)] for name, some in kept.items()}
    count, total = sum(map(len, by_split.values())), sum(map(len, kept.values()))
    if count:
        places = tuple(data.splits[name].where(row) for name, rows in by_split.items() for row in rows[:SHOWN])[:SHOWN]
        text = f"{count:,} of {counted(total, 'recording')} {what if count > 1 else what.replace('are', 'is', 1)} "
        text += f"(e.g. {places[0]}). Listen to them; what is not understood teaches guessing."
        yield Finding(kind="data", level="note", text=text, figures={"recordings": count}, places=places)


def _shifted(data: AuditedData, name: str, recordings: Sequence[Recording]) -> Iterator[Finding]:
    """Compare the lengths of recordings with those of their own transcripts, and of the neighbours'."""
    if len(recordings) < FEWEST:
        return
    seconds, characters = (np.array([getattr(x, key) for x in recordings]) for key in ("seconds", "characters"))
    own = _correlation(seconds, characters)
    beside = np.diff([x.row for x in recordings]) == 1
    after = _correlation(seconds[:-1][beside], characters[1:][beside])
    before = _correlation(seconds[1:][beside], characters[:-1][beside])
    best, side = max((after, "next"), (before, "previous"))
    places = (data.splits[name].where(recordings[0].row),)
    figures = {"own": own, "next": after, "previous": before, "split": name}
    if best >= RELATED and best >= own + MORE:
        lead = f"shift the transcripts of {name} back: those of the {side} rows suit the recordings' lengths"
        text = f"{lead[:1].upper()}{lead[1:]} (rank correlation {best:.2f}), their own do not ({own:.2f})."
        brief = lead
    elif own < UNRELATED and np.std(seconds) > 0.15 * np.mean(seconds) and np.std(characters) > 0:
        lead = f"check that the transcripts of {name} belong to the recordings"
        text = f"{lead[:1].upper()}{lead[1:]}: longer recordings do not have longer transcripts (rank correlation "
        text, brief = f"{text}{own:.2f}).", lead
    else:
        return
    yield Finding(
        kind="data", level="alarm", text=text, brief=brief, explains=("quality",), figures=figures, places=places
    )


def _rates(data: AuditedData, name: str, recordings: Sequence[Recording]) -> Iterator[Finding]:
    """Find rates of speech that no one has: a wrong sampling rate plays speech too slowly or too fast."""
    spoken = [x for x in recordings if x.characters and x.seconds > 0]
    if len(spoken) < FEWEST:
        return
    rates = np.array([x.characters / x.seconds for x in spoken])
    middle = float(np.median(rates))
    if not USUAL[0] <= middle <= USUAL[1]:
        slow = "slowly" if middle < USUAL[0] else "fast"
        lead = f"check the sampling rate of {name}: its speech is too {slow} for a human"
        text = f"{lead[:1].upper()}{lead[1:]}, {middle:.1f} letters a second (median); usual are 8 to 18. Either the "
        text += "files' headers state another rate than they were recorded at, or the transcripts are of other parts."
        yield Finding(
            kind="data", level="alarm", text=text, brief=lead, explains=("quality",), figures={"rate": middle}
        )
        return
    odd = [x for x, rate in zip(spoken, rates, strict=True) if not middle / FACTOR <= rate <= middle * FACTOR]
    if odd:
        places = tuple(data.splits[name].where(x.row) for x in odd[:SHOWN])
        share = percent(len(odd) / len(spoken))
        text = (
            f"{len(odd):,} of {counted(len(spoken), 'recording')} of {name} ({share}) have over {FACTOR:g} times more "
        )
        text += f"or fewer letters a second than the others ({middle:.1f}; e.g. {places[0]}): a wrong sampling rate, a "
        text += "transcript of another recording, or long silence."
        yield Finding(kind="data", level="note", text=text, figures={"rows": len(odd), "rate": middle}, places=places)


def _correlation(some: np.ndarray, others: np.ndarray) -> float:
    """Return Spearman's rank correlation; 0 where one side does not vary."""
    if len(some) < 3 or np.std(some) == 0 or np.std(others) == 0:
        return 0.0
    from scipy.stats import spearmanr

    return float(spearmanr(some, others).statistic)
