"""Blind judging: the order of pairs and the sides for each person, and the progress."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, get_args

from ftengine.errors import InputError
from ftengine_studio.answers import Pair, answers_version, pairs_of
from ftengine_studio.judgements import Choice, Judgement, append, current, now, read
from ftengine_studio.runs import StudioRun, maker_name

VERDICTS: tuple[str, ...] = get_args(Choice)
LONGEST_NAME, LONGEST_NOTE = 60, 4000


class NotThere(InputError):
    """A request names something that does not exist."""


class Changed(InputError):
    """The judged answers have changed on the server."""


@dataclass(frozen=True)
class Contest:
    """Two makers of answers to the same prompts: base and tuned model of a run, or two runs.

    Judgements go to the folder of `run`. All people get the prompts in one order, so that they overlap; the sides are
    drawn for each person and prompt.
    """

    run: StudioRun
    other: StudioRun | None = None
    seed: int = 0
    _read: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def makers(self) -> tuple[str, str]:
        """The two compared models; rates are of the first."""
        if self.other is None:
            return "tuned", "base"
        return maker_name(self.other.path, self.run.path), maker_name(self.run.path, self.run.path)

    @property
    def title(self) -> str:
        """Its name on the page."""
        return f"{self.run.name}: base and tuned" if self.other is None else " and ".join(reversed(self.makers))

    @property
    def pairs(self) -> Sequence[Pair]:
        """The pairs in the order in which they are judged; further ones do not change the order of the others.

        They are read anew where a run's answers have changed, as when its training ends.
        """
        version = [answers_version(run) for run in (self.run, self.other) if run is not None]
        if self._read.get("version") != version:
            pairs = pairs_of(self.run, self.other)
            self._read["pairs"] = sorted(pairs, key=lambda pair: _drawn(self.seed, pair.row, pair.prompt_hash))
            self._read["version"] = version
        return self._read["pairs"]  # type: ignore[no-any-return]

    def judgements(self) -> list[Judgement]:
        """Return the valid judgements of this contest from the file, those of answers that have changed left out."""
        own = [one for one in read(self.run.path) if {one.left, one.right} == set(self.makers)]
        return current(own, self.hashes)[0]

    @property
    def hashes(self) -> dict[str, str]:
        """The hash of the present answers by prompt."""
        return {pair.prompt_hash: pair.answers_hash for pair in self.pairs}

    def sides(self, judge: str, pair: Pair) -> tuple[str, str]:
        """Return the makers of the left and of the right answer for a person."""
        digest = _drawn(self.seed, judge, pair.row, pair.prompt_hash)
        first, second = self.makers
        return (first, second) if digest[0] % 2 else (second, first)

    def progress(self, judge: str) -> dict[str, Any]:
        """Return the number of pairs, how many a person has judged, and the first that is open; None: none is."""
        done = self._judged(judge)
        open_ = [i for i, pair in enumerate(self.pairs) if pair.prompt_hash not in done]
        return {
            "total": len(self.pairs),
            "judged": len(self.pairs) - len(open_),
            "next": open_[0] if open_ else None,
        }

    def shown(self, judge: str, number: int) -> dict[str, Any]:
        """Return a pair as shown to a person, without the answers' makers (NotThere: there is no such pair)."""
        pair, (left, right) = self._pair(number), self.sides(judge, self._pair(number))
        made = self._judged(judge).get(pair.prompt_hash)
        verdict = made.verdict if made else None
        if made and verdict in ("left", "right"):  # the sides of a judgement with another seed may be others
            verdict = "left" if made.preferred == left else "right"
        return {
            "number": number,
            "prompt": pair.prompt,
            "reference": pair.reference,
            "left": pair.answers[left],
            "right": pair.answers[right],
            "shown": self._fingerprint(pair, left, right),
            "verdict": verdict,
            "note": made.note if made else None,
        }

    def judge(self, judge: str, number: int, content: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a judgement and return the progress.

        Args:
            content: "verdict", "note", and "shown" as returned by `shown`.

        Raises:
            NotThere: there is no such prompt.
            Changed: the answers differ from those that were shown.
            InputError: the verdict or the note cannot be kept.
            RunError: the file cannot be written.
        """
        pair = self._pair(number)
        left, right = self.sides(judge, pair)
        if content.get("shown") != self._fingerprint(pair, left, right):
            raise Changed("these answers are no longer those that were shown. Reload the page.")
        append(self.run.path, self._judgement(judge, pair, (left, right), content))
        return self.progress(judge)

    def _judgement(self, judge: str, pair: Pair, sides: tuple[str, str], content: Mapping[str, Any]) -> Judgement:
        left, right = sides
        return Judgement(
            prompt=pair.row,
            prompt_hash=pair.prompt_hash,
            left=left,
            right=right,
            verdict=verdict_of(content),
            note=note_of(content),
            judge=judge,
            kind="person",
            time=now(),
            seed=self.seed,
            left_length=len(pair.answers[left]),
            right_length=len(pair.answers[right]),
            answers_hash=pair.answers_hash,
        )

    def _pair(self, number: int) -> Pair:
        if not 0 <= number < len(self.pairs):
            raise NotThere(f"there is no pair {number}: {len(self.pairs)} are numbered from 0.")
        return self.pairs[number]

    def _judged(self, judge: str) -> dict[str, Judgement]:
        """Return a person's judgements by prompt; a model may have the same name."""
        return {one.prompt_hash: one for one in self.judgements() if one.kind == "person" and one.judge == judge}

    def _fingerprint(self, pair: Pair, left: str, right: str) -> str:
        text = "\0".join((pair.prompt, pair.answers[left], pair.answers[right]))
        return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _drawn(*facts: object) -> bytes:
    """Return bytes that look random and are determined by some facts."""
    return sha256("\0".join(map(str, facts)).encode()).digest()


def contests_of(runs: Sequence[StudioRun], seed: int) -> list[Contest]:
    """Return what can be judged: each run's base and tuned model, and each run against the first.

    Judgements of two runs go to the folder whose path comes first, so that they are found there whatever is opened.
    """
    own = [Contest(run, None, seed) for run in runs]
    both = [sorted((runs[0], other), key=lambda run: run.path.resolve()) for other in runs[1:]]
    return own + [Contest(home, other, seed) for home, other in both]


def name_of(value: Any) -> str:
    """Return a person's name (InputError: it is empty, long, or has control characters)."""
    name = unicodedata.normalize("NFC", value).strip() if isinstance(value, str) else ""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise InputError(
            f"give a name of 1 to {LONGEST_NAME} printable characters, so that judgements can be told apart."
        )
    return name


def verdict_of(content: Mapping[str, Any]) -> Choice:
    """Return the verdict of a request (InputError: there is none)."""
    verdict = content.get("verdict")
    if verdict not in VERDICTS:
        raise InputError(f"verdict {verdict!r}: it is one of {', '.join(VERDICTS)}.")
    return verdict  # type: ignore[no-any-return]


def note_of(content: Mapping[str, Any]) -> str | None:
    """Return the note of a request; None where it is blank (InputError: it is no text, or too long)."""
    note = content.get("note")
    if note is not None and not isinstance(note, str):
        raise InputError("the note is not text.")
    if note and len(note) > LONGEST_NOTE:
        raise InputError(f"the note has {len(note):,} characters; at most {LONGEST_NOTE:,} are kept.")
    return note.strip() or None if note else None
