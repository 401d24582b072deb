"""judgements.jsonl in a run's folder: who preferred which of two answers, a line a judgement."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from filelock import FileLock, Timeout

from ftengine.errors import RunError, system_limit
from ftengine.identity import json_hash

FILE = "judgements.jsonl"
FORMAT = 1
LOCK_SECONDS = 10.0
"""How long `append` waits for another process that writes a judgement."""

Choice = Literal["left", "right", "tie", "both-bad", "skip"]
Kind = Literal["person", "model"]


@dataclass(frozen=True)
class Judgement:
    """One judgement of two answers to one prompt.

    Args:
        prompt: position of the row in the test set (`row` of the prediction tables).
        prompt_hash: `hash_of` the prompt.
        left, right: whose answer stood on this side: "base", "tuned", or a run (`ftengine_studio.runs.maker_name`).
        verdict: the better side, "tie" (equally good), "both-bad" or "skip".
        judge: name of the person or model.
        kind: whether a person or a model judged.
        time: ISO 8601, UTC.
        seed: decides the order of prompts and sides.
        left_length, right_length: characters of the answers.
        note: what the judge wrote about it.
        answers_hash: `answers_hash` of the two answers; None in lines of a program that gave none.
    """

    prompt: int
    prompt_hash: str
    left: str
    right: str
    verdict: Choice
    judge: str
    kind: Kind
    time: str
    seed: int
    left_length: int
    right_length: int
    note: str | None = None
    format: int = FORMAT
    answers_hash: str | None = None

    @property
    def preferred(self) -> str | None:
        """Whose answer is better; None for a tie, two bad answers and a skipped pair."""
        return {"left": self.left, "right": self.right}.get(self.verdict)

    @property
    def subject(self) -> tuple[str, str, str, frozenset[str]]:
        """Judge (a person or a model of that name), prompt and pair, of which the last judgement counts."""
        return self.kind, self.judge, self.prompt_hash, frozenset((self.left, self.right))


def hash_of(prompt: str) -> str:
    """Return the SHA-256 of a prompt's text, in hexadecimal."""
    return sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()


def answers_hash(answers: Mapping[str, str]) -> str:
    """Return a hash of two answers by maker, whichever side they stand on."""
    return json_hash(dict(answers))


def now() -> str:
    """Return the time in the form that judgements have."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def read(run: str | Path) -> list[Judgement]:
    """Read the judgements of a run, in the order in which they were made; [] where there are none.

    A last line that a killed server left half-written is left out with a warning.

    Raises:
        RunError: another line is damaged; the message names it.
    """
    file = Path(run) / FILE
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{str(file)!r} cannot be read: {error.strerror or error}.") from None
    lines, judgements = content.split(b"\n"), list[Judgement]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            judgements.append(_parsed(line))
        except (ValueError, TypeError) as error:
            if number == len(lines):  # no line break follows
                warnings.warn(f"{file}: line {number} is cut off and left out", stacklevel=2)
                continue
            raise RunError(
                f"{str(file)!r}: line {number} is damaged: {error}. Remove the line, or restore the file."
            ) from None
    return judgements


def latest(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Return, of several judgements by one judge of one prompt and pair, the last; in the order of the last ones."""
    last = dict[tuple[str, str, str, frozenset[str]], Judgement]()
    for judgement in judgements:
        last.pop(judgement.subject, None)
        last[judgement.subject] = judgement
    return list(last.values())


def current(judgements: Sequence[Judgement], hashes: Mapping[str, str]) -> tuple[list[Judgement], int]:
    """Return the valid judgements of the present answers, and the number of those whose answers have changed since.

    Args:
        judgements: of one pair of makers, in the order in which they were made.
        hashes: `answers_hash` of the present answers by prompt; empty where these are not known. Then the answers of
            each prompt's last judgement are taken for the present ones.
    """
    last = {one.prompt_hash: one.answers_hash for one in judgements if one.answers_hash is not None}
    wanted: Mapping[str, str | None] = hashes or {one.prompt_hash: last.get(one.prompt_hash) for one in judgements}
    of_present = [
        one for one in judgements if one.prompt_hash in wanted and one.answers_hash in (None, wanted[one.prompt_hash])
    ]
    kept = latest(of_present)
    return kept, len(latest(judgements)) - len(kept)


def append(run: str | Path, judgement: Judgement) -> None:
    """Add a judgement to a run's file, on disk before this returns; half a line of a killed server is removed.

    Raises:
        RunError: the file cannot be written, as on a full disk; what it held before stays.
    """
    append_line(Path(run) / FILE, asdict(judgement))


def append_line(file: Path, content: dict[str, Any]) -> None:
    """Add a line of JSON to a file, under a lock and flushed to the disk (RunError: it cannot be written)."""
    line = (json.dumps(content, allow_nan=False) + "\n").encode()
    try:
        with FileLock(file.with_name(f".{file.name}.lock"), timeout=LOCK_SECONDS):
            opened = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                end = _end_of_lines(opened)
                os.ftruncate(opened, end)
                _write(opened, line, end)
            finally:
                os.close(opened)
    except Timeout:
        raise RunError(f"{str(file)!r} is in use: another process holds its lock. Try again.") from None
    except OSError as error:
        limit = system_limit(error)
        reason = f"{limit[0]}. {limit[1]}" if limit else (error.strerror or str(error))
        raise RunError(f"cannot write {str(file)!r}: {reason}. The line was not kept; earlier ones are.") from None


def _write(opened: int, line: bytes, end: int) -> None:
    """Write a whole line at the end and flush it; on an error the file is as before."""
    try:
        written = 0
        while written < len(line):
            written += os.pwrite(opened, line[written:], end + written)
        os.fsync(opened)
    except OSError:
        os.ftruncate(opened, end)
        raise


def _end_of_lines(opened: int) -> int:
    """Return the position after the last line break of a file."""
    end = os.fstat(opened).st_size
    while end:
        start = max(0, end - 4096)
        block = os.pread(opened, end - start, start)
        if (found := block.rfind(b"\n")) >= 0:
            return start + found + 1
        end = start
    return 0


def _parsed(line: bytes) -> Judgement:
    """Return a line's judgement (ValueError, TypeError: it is none)."""
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError("it is not an object")
    if content.get("format") != FORMAT:
        raise ValueError(f"its format is {content.get('format')!r}, and this version reads {FORMAT}")
    names = {field.name for field in fields(Judgement)}
    if further := content.keys() - names:
        raise ValueError(f"it has the further key {min(further)!r}")
    judgement = Judgement(**content)
    hints = get_type_hints(Judgement)
    for name in names:
        value, kind = getattr(judgement, name), hints[name]
        allowed = get_args(kind)
        good = value in allowed if isinstance(next(iter(allowed), None), str) else isinstance(value, allowed or kind)
        if not good or isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}")
    return judgement
