"""Training, validation and test rows; rows that belong together are in one split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

import numpy as np

from ftengine.api import AuditedData, Task
from ftengine.data.audit import to_audit
from ftengine.data.distinct import Distinct
from ftengine.data.excluded import without_excluded
from ftengine.data.leaks import describe, find_leaks, leaked
from ftengine.data.mixed import MixedRows, mixed
from ftengine.data.near import Near, find_near
from ftengine.data.partition import folds, latest, partition
from ftengine.data.read import read_rows
from ftengine.data.row_hashes import RowHashes, connected, fingerprints
from ftengine.data.rows import DataRows
from ftengine.data.split_columns import times, values
from ftengine.errors import DataError
from ftengine.plugins.registry import Registry
from ftengine.run.recipe import DataSection
from ftengine.run.recipe_sources import names
from ftengine.text import counted, listed, number, quoted

LEAST_ROWS = 0.1
"""The least product of fraction and rows: of few rows, one is held out although the product is below 1."""


def _grouped(section: DataSection) -> bool:
    """Return whether groups determine the split of a row; with a split by time they do not."""
    return section.group_column is not None and section.split.by != "time"


@dataclass(frozen=True)
class Splits:
    """The data of a run.

    Args:
        train, validation, test: rows; None if the recipe has no such split.
        divide: divides the data again without training rows at some places, which are skipped for the given reasons.
        to_audit: returns the data for audits; None if there are none.
        trained_on: with data.leaks: warn, which rows of each held-out split are also in training.
    """

    train: DataRows
    validation: DataRows | None
    test: DataRows | None
    divide: Callable[[Mapping[str, str]], Splits]
    to_audit: Callable[..., AuditedData] | None = None
    trained_on: Mapping[str, np.ndarray] = field(default_factory=dict)

    def mapping(self) -> dict[str, DataRows]:
        """Return the existing splits by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: rows for name, rows in splits.items() if rows is not None}

    def audited(self, left_out: Mapping[str, Sequence[int]] = MappingProxyType({})) -> AuditedData:
        """Return the data for audits, without the rows that are left out because they cannot be encoded."""
        assert self.to_audit is not None, "the splits were made without audits"
        return self.to_audit(left_out=left_out)


def make_splits(
    section: DataSection,
    task: Task,
    seed: int,
    registry: Registry | None = None,
    *,
    audited: bool = True,
) -> Splits:
    """Read the recipe's data, hold out validation and test rows, and find leaks.

    Validation and test are separate files or parts of the training file: fractions, or a fold.

    Args:
        seed: of the division.
        registry: has the readers; by default those that are installed.
        audited: whether audits follow; if not, only what affects the division is computed.

    Raises:
        DataError: a source cannot be read, its columns do not suit the task, there are too few distinct examples for a
            fraction, or training has rows that are also held out (data.leaks: auto, fail).
    """
    return _divided(_read(section, task, seed, registry or Registry()), section, task, audited, {})


def _divided(read: RowHashes, section: DataSection, task: Task, audited: bool, left_out: Mapping[str, str]) -> Splits:
    hashes = read.without(left_out) if left_out else read
    shares = {name: part for name in ("test", "validation") if isinstance(part := getattr(section, name), float)}
    cutting = bool(shares) or section.split.folds is not None
    distinct, near = Distinct(hashes.splits, hashes.digests, task), None
    # If near duplicates affect the division, they are searched before it, else after it.
    together = section.split.duplicates == "together" and section.split.by != "time"
    dropping = section.leaks == "drop"
    threshold = section.near_duplicates if audited or dropping or (together and cutting) else None
    if threshold is not None and (together or not cutting):
        near = find_near(distinct, threshold)
    if cutting:
        hashes = hashes.divided(_sides(section, task, hashes, distinct, near, shares))
        distinct = Distinct(hashes.splits, hashes.digests, task)  # the same examples, so their numbers do not change
        if threshold is not None and near is None:
            near = find_near(distinct, threshold)
    groups = hashes.keys if _grouped(section) else {}
    leaks = find_leaks(hashes.splits, distinct, near, groups)
    if audited and section.leaks in ("auto", "fail"):
        _refuse(leaks, hashes.splits, section, cutting)
    remaining, held_out = None, [name for name in hashes.splits if name != "train"]
    if dropping and any(leak["between"][0] == "train" for leak in leaks):
        remaining = np.flatnonzero(~leaked(distinct, near, "train", held_out, groups))
        if not len(remaining):
            raise DataError(
                f"{section.train_name}: every row of training{', or its group,' if groups else ''} is also in "
                f"{' or '.join(held_out)}; data.leaks: drop leaves nothing to train on. Give other data to hold out."
            )
    data = None
    if audited:
        leaks = [leak | {"text": describe(leak, hashes.splits, section)} for leak in leaks]
        part_shares = _part_shares(section, shares)
        data = partial(to_audit, hashes, distinct, near, leaks, section, task, remaining=remaining, shares=part_shares)
    train = hashes.splits["train"] if remaining is None else hashes.splits["train"].select(remaining)
    again = partial(_divided, read, section, task, audited)
    trained_on = {}
    if section.leaks == "warn":
        trained_on = {name: leaked(distinct, near, name, ["train"], groups) for name in held_out}
    return Splits(train, hashes.splits.get("validation"), hashes.splits.get("test"), again, data, trained_on)


def _read(section: DataSection, task: Task, seed: int, registry: Registry) -> RowHashes:
    sources = {name: part for name in ("validation", "test") if isinstance(part := getattr(section, name), str)}
    splits = {"train": _read_train(section, task, registry)}
    splits |= {name: read_for(source, section, task, registry) for name, source in sources.items()}
    if section.exclude is not None:
        splits = without_excluded(splits, section.exclude)
    digests, targets = {}, {}
    for name, rows in splits.items():
        digests[name], targets[name] = fingerprints(rows, task, seed)
    keys = dict[str, np.ndarray]()
    if section.group_column is not None:
        keys = {name: values(rows, section.group_column) for name, rows in splits.items()}
    if section.split.by == "time":
        keys = times(splits, section.split.column or "")
    return RowHashes(splits, digests, targets, keys)


def _part_shares(section: DataSection, shares: Mapping[str, float]) -> dict[str, float]:
    """Return the configured share of the training source for each split that is cut from it."""
    if section.split.folds is None:
        return dict(shares)
    tested = 1 / section.split.folds
    return {"test": tested} | {name: share * (1 - tested) for name, share in shares.items()}


def _sides(
    section: DataSection,
    task: Task,
    hashes: RowHashes,
    distinct: Distinct,
    near: Near | None,
    shares: Mapping[str, float],
) -> dict[str, np.ndarray]:
    """Divide the training source; return the row indices of each part, ascending."""
    split, rows = section.split, hashes.splits["train"]
    for name, share in shares.items():
        if share * len(rows) < LEAST_ROWS:
            raise DataError(
                f"{rows.source}: data.{name} is {share:g}, too small to select any of its "
                f"{counted(len(rows), 'row')}. Set it to {number(1 / len(rows))} or more, or to null."
            )
    if split.by == "time":
        return latest(hashes.keys["train"], shares, rows.source)
    groups = _groups(section, hashes, distinct, near)
    if _grouped(section):
        _require_groups(section, hashes, distinct, near, len(np.unique(groups)), list(shares))
    targets = hashes.targets["train"] if split.by == "stratified" else None
    if targets is not None and not targets.any():
        raise DataError(
            f"{rows.source}: data.split.by is stratified, but task {task.name!r} finds no labels to stratify by. Set "
            "data.split.by to random."
        )
    if targets is not None and (kinds := len(np.unique(targets))) > len(targets) / 2:
        raise DataError(
            f"{rows.source}: its {len(targets):,} rows have {kinds:,} different targets, too many for data.split.by: "
            "stratified. Set it to random."
        )
    sources = rows.of if isinstance(rows, MixedRows) else None
    if split.folds is None:
        return partition(groups, shares, rows.source, targets, sources)
    fold = folds(groups, split.folds, rows.source, targets, sources)
    test, rest = np.flatnonzero(fold == split.fold), np.flatnonzero(fold != split.fold)
    if not shares:
        return {"train": rest, "test": test}
    of_rest = (None if of is None else of[rest] for of in (targets, sources))
    parts = partition(groups[rest], shares, rows.source, *of_rest)
    return {"test": test} | {name: rest[part] for name, part in parts.items()}


def _groups(section: DataSection, hashes: RowHashes, distinct: Distinct, near: Near | None) -> np.ndarray:
    """Return the group of each row of the training source; the order of groups is a shuffle by the seed."""
    of, digests = distinct.of["train"], hashes.digests["train"]
    equal = of if near is None else near.groups[of]  # numbers follow the order of hashes
    together = section.split.duplicates == "together"
    if not _grouped(section):
        return equal if together else _each(digests)
    grouped = np.unique(hashes.keys["train"], return_inverse=True)[1]
    # Rows connected by equal values or by duplicates stay together.
    return _shuffled(connected(grouped, equal) if together else grouped, digests)


def _require_groups(
    section: DataSection, hashes: RowHashes, distinct: Distinct, near: Near | None, available: int, parts: list[str]
) -> None:
    """Raise DataError if a column makes too few groups to divide; the message says what joins its values."""
    split, rows = section.split, hashes.splits["train"]
    if available >= (split.folds or len(parts) + 1):
        return
    task = f"for {split.folds} folds" if split.folds else f"to hold out {' and '.join(parts)} and keep one for training"
    grouped, of = hashes.keys["train"], distinct.of["train"]
    kinds = len(np.unique(grouped))
    description = f"{counted(available, 'group')} of column {section.group_column!r}"
    cures = [f"take {available} folds at most (--folds or data.split.folds)"] if split.folds and available > 1 else []
    if available < kinds:
        equal = of if near is None else near.groups[of]
        order = np.lexsort((grouped, equal))
        here, then = order[:-1], order[1:]
        first = np.flatnonzero((equal[here] == equal[then]) & (grouped[here] != grouped[then]))[0]
        places = f"{rows.where(int(here[first]))} ≈ {rows.where(int(then[first]))}"
        description += f" ({kinds:,} values, joined by duplicates, e.g. {places})"
        if not split.folds:  # with folds, equal rows would be in training and test
            cures.append("set data.split.duplicates: apart, with data.leaks: drop to remove the leaks that this makes")
    key = "data.split.column" if split.by == "group" else "data.group"
    cures.append(f"take a column of more values in {key}")
    problem, cure = f"its {len(rows):,} rows fall into {description}; that is too few {task}", ", or ".join(cures)
    raise DataError(f"{rows.source}: {problem}. {cure[0].upper()}{cure[1:]}.")


def _shuffled(labels: np.ndarray, digests: np.ndarray) -> np.ndarray:
    """Number groups by the least hash of their rows, so that their order depends on the seed and not on the file."""
    order = np.argsort(digests, kind="stable")
    _, first, inverse = np.unique(labels[order], return_index=True, return_inverse=True)
    result = np.empty(len(labels), dtype=np.int64)
    result[order] = np.argsort(np.argsort(first))[inverse]
    return result


def _each(digests: np.ndarray) -> np.ndarray:
    """Number rows in a shuffled order in which equal rows are not adjacent."""
    hashes = [blake2b(digest + i.to_bytes(8, "big"), digest_size=8).digest() for i, digest in enumerate(digests)]
    return _shuffled(np.arange(len(digests)), np.array(hashes, dtype="S8"))


def _refuse(leaks: list[dict[str, Any]], splits: Mapping[str, DataRows], section: DataSection, cutting: bool) -> None:
    """Raise DataError for training rows that are also held out; near duplicates alone only with data.leaks: fail."""
    serious = [leak for leak in leaks if leak["between"][0] == "train"]
    if section.leaks == "auto":
        serious = [leak for leak in serious if leak["count"] or leak.get("groups")]
    if not serious:
        return
    descriptions = [describe(leak, splits, section) for leak in serious]
    keeps_apart = section.split.duplicates == "apart" and cutting
    texts = dict.fromkeys(leak["one_text"][0] for leak in serious if leak["one_text"])
    cures = [f"leave out the rows whose text is only {listed(list(map(quoted, texts)))}"] if texts else []
    cures += ["set data.split.duplicates: together, which keeps them on one side"] if keeps_apart else []
    cures.append("take them out of training with data.leaks: drop")
    near = section.leaks == "fail" and any(leak["near"] for leak in serious)
    cures += ["compare equal rows only with data.near_duplicates: null"] if near else []
    cures.append("measure them separately with data.leaks: warn")
    raise DataError(
        f"{'; '.join(descriptions)}. Figures on such rows do not show the quality on new data "
        f"(data.leaks: {section.leaks}). Either {', or '.join(cures)}."
    )


def _read_train(section: DataSection, task: Task, registry: Registry) -> DataRows:
    if isinstance(section.train, str):
        return read_for(section.train, section, task, registry)
    sources = [
        replace(
            read_for(source.source, section, task, registry, {"reader": source.reader, "columns": source.columns}),
            source=name,
        )
        for name, source in zip(names(section.train), section.train, strict=True)
    ]
    return mixed(sources, [source.weight for source in section.train if source.weight is not None])


def read_for(
    source: str,
    section: DataSection,
    task: Task,
    registry: Registry | None = None,
    own: Mapping[str, Any] = MappingProxyType({}),
) -> DataRows:
    """Read a source with the recipe's options (DataError: it cannot be read, or the task lacks a column).

    Args:
        own: the source's own reader and columns, which replace the recipe's; values of None do not.
    """
    options: dict[str, Any] = {"reader": section.reader, "on_error": section.on_error, "columns": section.columns}
    options |= {key: value for key, value in own.items() if value is not None}
    rows = read_rows(source, registry=registry, task=task, **options)
    try:
        task.check_columns(rows.columns)
    except DataError as error:
        raise DataError(f"{source}: {error}{rows.hint}") from None
    return rows
