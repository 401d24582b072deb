"""A run's rows as its model reads them, with filters, and the file of rows that people exclude."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from ftengine.api import OnPolicyTask
from ftengine.errors import FtengineError, InputError, RunError
from ftengine.text import comparable
from ftengine_studio.judgements import now
from ftengine_studio.judging import NotThere
from ftengine_studio.runs import StudioRun

if TYPE_CHECKING:
    from ftengine import Experiment

EXCLUDED = "excluded.jsonl"
"""The file that `data.exclude` reads, in the run's folder."""
MOST_ROWS = 100
"""Rows on one page."""
SHOWN_CHARACTERS = 20_000
"""Characters of a row that are sent to the page."""
FINDINGS = ("duplicates", "leaks", "contradictions", "marked")
"""Filters beside split and length; rows of one group stand side by side."""


@dataclass(frozen=True)
class Rows:
    """A table of all examples of a run: split, position, length, and groups of findings.

    Args:
        splits: names, numbered by `split`.
        split, number: (n,) the split, and the position among its encoded examples.
        length: (n,) in tokens.
        groups: for each finding (n,) int64 numbers that rows of one group share, -1 outside.
    """

    splits: Sequence[str]
    split: np.ndarray
    number: np.ndarray
    length: np.ndarray
    groups: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.split)

    def chosen(
        self, split: str | None, least: int | None, most: int | None, finding: str | None, marked: set[int]
    ) -> np.ndarray:
        """Return the rows that pass all filters, sorted by the groups of a finding.

        Raises:
            NotThere: there is no such split or finding.
        """
        mask = np.ones(len(self), dtype=bool)
        if split:
            if split not in self.splits:
                raise NotThere(f"there is no split {split!r}, only {', '.join(self.splits)}.")
            mask &= self.split == list(self.splits).index(split)
        mask &= self.length >= (least or 0)
        if most is not None:
            mask &= self.length <= most
        if not finding:
            return np.flatnonzero(mask)
        if finding not in FINDINGS:
            raise NotThere(f"there is no filter {finding!r}, only {', '.join(FINDINGS)}.")
        if finding == "marked":
            return np.array([row for row in sorted(marked) if mask[row]], dtype=int)
        group = self.groups[finding]
        # The partner of a chosen row is shown too, also where it is in another split.
        shown = np.flatnonzero(np.isin(group, group[mask & (group >= 0)]) & (group >= 0))
        return shown[np.argsort(group[shown], kind="stable")]


class Progress:
    """A listener that keeps the phase and how far it is, for the page."""

    def __init__(self) -> None:
        self._phase, self._total, self._done = "", 0, 0

    def phase(self, name: str, total: int | None = None) -> None:
        self._phase, self._total, self._done = name, total or 0, 0

    def advance(self, steps: int = 1, **figures: float) -> None:
        self._done += steps

    def message(self, text: str) -> None: ...

    def __str__(self) -> str:
        share = f": {self._done:,} of {self._total:,}" if self._total else ""
        return f"{self._phase}{share}"


class DataView:
    """The data of one run; read in a thread at the first call, as that may take long.

    Args:
        trust_code: whether code that the recipe names may load the model's processor, or check the rows.
    """

    def __init__(self, run: StudioRun, *, trust_code: bool = False) -> None:
        self.run, self._trust_code = run, trust_code
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._error = self._note = ""
        self._progress = Progress()
        self._rows: Rows | None = None
        self._data: Any = None
        self._places: dict[str, int] = {}

    def state(self) -> dict[str, Any]:
        """Return the state of the data, "reading", "ready" or "failed", and if ready its content."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._read, name="ftengine-studio-data", daemon=True)
                self._thread.start()
        if self._error:
            return {"state": "failed", "message": self._error}
        rows = self._rows
        if rows is None:
            return {"state": "reading", "message": str(self._progress)}
        findings = [{"level": one.level, "text": one.text} for one in self._data.audit.findings]
        return {
            "state": "ready",
            "note": self._note,
            "splits": {name: int((rows.split == i).sum()) for i, name in enumerate(rows.splits)},
            "longest": int(rows.length.max(initial=0)),
            "findings": findings,
            "counts": {name: int((group >= 0).sum()) for name, group in rows.groups.items()},
            **self._marks_summary(),
        }

    def page(
        self,
        *,
        split: str | None = None,
        least: int | None = None,
        most: int | None = None,
        finding: str | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> dict[str, Any]:
        """Return "total", the number of rows that pass the filters, and the "rows" of one page of them.

        Raises:
            NotThere: the data is not read yet, or there is no such split or finding.
        """
        rows, marks = self._ready(), self._marks()
        marked = {self._places[place] for place in marks if place in self._places}
        chosen = rows.chosen(split, least, most, finding, marked)
        start = max(0, offset)
        shown = chosen[start : start + min(max(1, limit), MOST_ROWS)].tolist()
        group = rows.groups.get(finding or "")
        return {
            "total": len(chosen),
            "rows": [self._row(row, marked) | {"group": None if group is None else int(group[row])} for row in shown],
        }

    def mark(self, row: int, marked: bool, by: str, reason: str | None = None) -> dict[str, Any]:
        """Exclude a row or include it again, and write the file (NotThere, RunError: it cannot be written)."""
        rows = self._ready()
        if not 0 <= row < len(rows):
            raise NotThere(f"there is no row {row}: {len(rows)} are numbered from 0.")
        table, number = self._source(row)
        place = table.where(number)
        file = self.run.path / EXCLUDED
        with FileLock(file.with_name(f".{EXCLUDED}.lock"), timeout=10):
            marks = self._marks()
            if marked:
                entry = {"place": place, "sha256": table.content_hash(number), "by": by, "time": now()}
                marks[place] = entry | ({"reason": reason} if reason else {})
            else:
                marks.pop(place, None)
            _write(file, marks.values())
        return self._marks_summary()

    def _marks_summary(self) -> dict[str, Any]:
        return {"marked": len(self._marks()), "file": str(self.run.path / EXCLUDED)}

    def _marks(self) -> dict[str, dict[str, Any]]:
        """Return the marked rows by place; before the first mark, those that the run's recipe excludes already."""
        file = self.run.path / EXCLUDED
        if not file.is_file() and self.run.recipe.data.exclude is not None:
            file = Path(self.run.recipe.data.exclude)
        try:
            lines = file.read_text(encoding="utf-8").split("\n")
            entries = [json.loads(line) for line in lines if line.strip()]
            return {entry["place"]: entry for entry in entries}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{str(file)!r} cannot be read: {error}. Correct or remove it.") from None

    def _ready(self) -> Rows:
        if self._rows is None:
            raise NotThere("the data is not read yet.")
        return self._rows

    def _source(self, row: int) -> tuple[Any, int]:
        """Return the table of a row's split and its number there, before rows were repeated for several examples."""
        rows = self._ready()
        encoded = self._data.encoded[rows.splits[int(rows.split[row])]]
        return encoded.rows, int(encoded.index[int(rows.number[row])])

    def _row(self, row: int, marked: set[int]) -> dict[str, Any]:
        rows = self._ready()
        split = rows.splits[int(rows.split[row])]
        encoded, (table, number) = self._data.encoded[split], self._source(row)
        pieces = encoded.task.decode_example(encoded.features(number), encoded.processor)
        if not pieces:
            pieces = [(text, False) for text in table.view(number, encoded.task).texts]
            label = table.view(number, encoded.task).label
            pieces += [] if label is None else [(str(label), True)]
        shown, room = list[list[Any]](), SHOWN_CHARACTERS
        for text, trained in pieces:
            shown.append([text[:room], bool(trained)])
            room -= len(text)
            if room <= 0:
                shown.append(["… (the row is longer)", False])
                break
        place = table.where(number)
        return {
            "row": row,
            "split": split,
            "place": place,
            "length": int(rows.length[row]),
            "pieces": shown,
            "marked": self._places.get(place) in marked,
        }

    def _read(self) -> None:
        from ftengine import Experiment, prepare_data

        try:
            recipe = self.run.recipe
            experiment = Experiment.open(recipe, listener=self._progress, check_source=False)
            self._require_trust(experiment)
            data = prepare_data(experiment)
            recorded = ((self.run.read("audit.json") or {}).get("encoded") or {}).items()
            if recorded and {name: split["content"] for name, split in recorded} != data.audit.contents:
                self._note = "The data files have changed since this run was made; this is how they are now."
            self._data, rows = data, _rows_of(data)
            numbers = range(len(rows))
            splits = [data.encoded[name] for name in rows.splits]
            self._places = {}
            for row, split, number in zip(numbers, rows.split.tolist(), rows.number.tolist(), strict=True):
                self._places.setdefault(splits[split].rows.where(int(splits[split].index[number])), row)
            self._rows = rows
        except FtengineError as error:
            self._error = str(error)
        # Whatever a third-party reader or task raises: the page says so, and the others go on.
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"

    def _require_trust(self, experiment: Experiment) -> None:
        """Raise InputError if reading the rows runs code that the recipe names, and that is not trusted."""
        task = experiment.make_task()
        codes = [experiment.loader.runs_code(self.run.recipe.model.source)]
        codes += [task.runs_code()] if isinstance(task, OnPolicyTask) else []
        for code in codes:
            if code and not self._trust_code:
                raise InputError(
                    f"run {self.run.name!r} reads its rows with {code}, which could do anything on this machine. If "
                    "you trust it, start the page with --trust-code."
                )


def _rows_of(data: Any) -> Rows:
    """Return the table of a run's examples."""
    names = list(data.encoded)
    encoded = [data.encoded[name] for name in names]
    split = np.concatenate([np.full(len(one), i) for i, one in enumerate(encoded)])
    number = np.concatenate([np.arange(len(one)) for one in encoded])
    length = np.concatenate([np.asarray(one.lengths) for one in encoded])
    audited = data.splits.audited({name: one.left_out for name, one in zip(names, encoded, strict=True)})
    equal = audited.distinct if audited.near is None else audited.near
    row, same, asked, answer = (np.empty(0, dtype=np.int64),) * 4
    for name, one in zip(names, encoded, strict=True):
        kept = np.delete(np.arange(len(data.splits.mapping()[name])), one.left_out)
        of = np.searchsorted(kept, one.rows.before(one.index))
        hashes = np.fromiter(_inputs_and_targets(audited.splits[name]), [("asked", "i8"), ("answer", "i8")])
        row = np.concatenate([row, row.max(initial=-1) + 1 + of])  # which may make several examples
        same = np.concatenate([same, equal[name][of]])
        asked, answer = np.concatenate([asked, hashes["asked"][of]]), np.concatenate([answer, hashes["answer"][of]])
    whole = np.unique(same, return_inverse=True)[1]
    of_input = np.where(answer != 0, np.unique(asked, return_inverse=True)[1], -1)
    train = split == names.index("train")
    groups = {
        "duplicates": _differing(whole, row),
        "leaks": _both(whole, train),
        "contradictions": _differing(of_input, answer),
    }
    return Rows(names, split, number, length, groups)


def _inputs_and_targets(rows: Any) -> Iterator[tuple[int, int]]:
    """Yield hashes of each row's inputs and of its target, 0 where it has none that could contradict another's."""
    for view in rows:
        target = view.target
        none = not view.inputs or target is None or target == "" or target in (view.inputs, view.inputs[0])
        texts = all(isinstance(text, str) for text in view.inputs)
        yield (0, 0) if none or not texts else (_hash(list(view.inputs)), _hash(target))


def _hash(value: Any) -> int:
    digest = blake2b(repr(comparable(value)).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True) or 1


def _both(group: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return the groups with rows of training and held-out ones, -1 for other rows."""
    size = int(group.max(initial=-1)) + 1
    inside, outside = (np.bincount(group[mask], minlength=size) > 0 for mask in (train, ~train))
    return np.where((inside & outside)[group], group, -1)


def _differing(group: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return the groups whose rows have several values, -1 for other rows and those outside of groups."""
    known = group >= 0
    if not known.any():
        return np.full(len(group), -1)
    pairs = np.unique(np.stack([group[known], value[known]]), axis=1)[0]
    several = np.bincount(pairs, minlength=int(group.max()) + 1) > 1
    return np.where(known & several[np.maximum(group, 0)], group, -1)


def _write(file: Path, entries: Any) -> None:
    """Write the file of excluded rows anew, under another name first (RunError: it cannot be written)."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"cannot write {str(file)!r}: {error.strerror or error}. The marks are as before.") from None


def number_of(text: str | None, what: str) -> int | None:
    """Return a whole number of a request; None where it is empty (InputError: it is no number)."""
    if not text:
        return None
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 10**9:
        raise InputError(f"{what} {text[:40]!r}: write a whole number from 0.")
    return value
