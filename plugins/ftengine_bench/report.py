"""The report file: versioned JSON, written atomically and validated when read."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ftengine.errors import InputError

FORMAT = "ftengine bench kernels"
SCHEMA = 1
"""Counts up when a field changes its meaning or goes."""


@dataclass(frozen=True)
class Case:
    """A layer and a time measured on it.

    Args:
        m, k, n, rank: tokens, inputs, outputs, and the update's rank.
        dtype: of x and of the frozen weight.
        p: dropout as it is applied, a multiple of 1/65536.
        p20, p50, p80: percentiles of seconds.
    """

    m: int
    k: int
    n: int
    rank: int
    dtype: str
    p: float
    p20: float
    p50: float
    p80: float


@dataclass(frozen=True)
class Row(Case):
    """One provider on one layer in one phase.

    Args:
        layers: names of the block's layers with this shape.
        transposed: the weight is stored as (K, N).
        phase: forward, backward or both.
        provider: the implementation that computed the layer.
        repetitions: number of timed repetitions.
        overhead: time divided by the frozen layer's: the median over rounds of the ratio within a round.
        recovered: recovered share of the avoidable overhead in this phase; None for `frozen` and `eager`, and if
            `eager` is at the lower bound.
        peak_bytes: peak memory of this phase, above that before the step.
        saved_bytes: bytes saved for the backward pass.
        operations: floating-point operations of the formula.
        bytes: bytes to move if each operand is read once and each result written once.
        roofline_share: the least time at the measured peaks divided by `p50`.
    """

    layers: list[str]
    transposed: bool
    phase: str
    provider: str
    repetitions: int
    overhead: float
    recovered: float | None
    peak_bytes: int
    saved_bytes: int
    operations: int
    bytes: int
    roofline_share: float

    @property
    def layer(self) -> tuple[Any, ...]:
        """The fields that identify the layer."""
        return (self.m, self.k, self.n, self.transposed, self.dtype, self.rank, self.p)


@dataclass(frozen=True)
class OperatorRow(Case):
    """One operator on one layer.

    Args:
        operator: its name in `torch.ops.ftengine`.
        backend: `compiled` or `reference`.
        bytes: least memory traffic in bytes.
        bandwidth: `bytes` divided by `p50`.
        copy_share: `bandwidth` divided by that of the large copy; on a CPU it may exceed 1.
        random_ns: for `lowrank_shrink` with dropout on a CPU, nanoseconds of a core per element for random bits and
            their use: the median over rounds of the time with dropout minus the time without; else None.
    """

    operator: str
    backend: str
    bytes: int
    bandwidth: float
    copy_share: float
    random_ns: float | None


def a_row_a_line(content: Mapping[str, Any]) -> str:
    """Return JSON with a line for each key and each entry of a list, for line-based diffs."""

    def text(value: Any) -> str:
        if not isinstance(value, list) or not value:
            return json.dumps(value, allow_nan=False)
        return "[\n" + ",\n".join(json.dumps(item, allow_nan=False) for item in value) + "\n]"

    return "{\n" + ",\n".join(f"{json.dumps(key)}: {text(value)}" for key, value in content.items()) + "\n}\n"


@dataclass(frozen=True)
class Report:
    """What `ftengine bench kernels` measured.

    Args:
        complete: False if the measurement was interrupted.
        environment: `device`, `name`, `capability` (SM or vector extension), `driver`, `kernels` (with the instruction
            set or architectures), `threads` and versions.
        settings: the settings; `left_out` has the unavailable providers, with reasons.
        peaks: by `dtype`: `copy_bytes_a_second` (read and written together) and `operations_a_second`.
        rows: one for each layer, provider and phase.
        operators: one for each operator.
    """

    complete: bool
    environment: dict[str, Any]
    settings: dict[str, Any]
    peaks: list[dict[str, Any]]
    rows: list[Row]
    operators: list[OperatorRow]

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "schema": SCHEMA, **asdict(self)}

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_text(a_row_a_line(self.to_json()), encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise InputError(f"cannot write {path}: {error.strerror}. Choose another place.") from None

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a file that `write` wrote.

        Raises:
            InputError: it is missing, not JSON, not a report, or of another version.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}.") from None
        except ValueError as error:  # no JSON, or no UTF-8
            raise InputError(f"{path} is no JSON: {error}.") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{path} holds no measurements; give a file that `ftengine bench kernels --json` wrote.")
        if content.get("schema") != SCHEMA:
            raise InputError(f"{path} has schema {content.get('schema')!r}; only {SCHEMA} is read. Measure again.")
        kinds = {"rows": Row, "operators": OperatorRow}
        try:
            parts = {field.name: content[field.name] for field in fields(cls)}
            for name, kind in kinds.items():
                known = {field.name for field in fields(kind)}  # later versions may tell more
                parts[name] = [kind(**{key: row[key] for key in row.keys() & known}) for row in parts[name]]
            if not all(row.overhead > 0 for row in parts["rows"]):
                raise TypeError("an overhead is not above 0")
            return cls(**parts)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({type(error).__name__}: {error}). Measure again.") from None


def check_writable(path: Path) -> None:
    """Refuse a path that cannot be written to.

    Raises:
        InputError: it is a folder, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder. Name a file in it.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"cannot write {path}: {path.parent}: {error.strerror}. Choose another place.") from None
