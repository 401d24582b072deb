"""Comparison of two or more measurements, to detect regressions.

The overhead over the frozen layer of the same run is compared, not seconds: a slower or busier machine slows both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ftengine.errors import FtengineError, InputError
from ftengine_bench.layers import GUARDED, OURS
from ftengine_bench.report import Report, Row

NOISY = 0.1
"""Median spread of a file's rows above which its machine was busy; on idle ones it is 3 to 8 % (benchmarks/results)."""


class Slower(FtengineError):
    """A measurement exceeds the first one by more than the allowed share."""


@dataclass(frozen=True)
class Comparison:
    """A row of ftengine's kernels in several files.

    Args:
        row: the row of the first file.
        overheads: overhead over the frozen layer in each file; None if a file has no such row.
    """

    row: Row
    overheads: list[float | None]

    @property
    def ratios(self) -> list[float | None]:
        """The ratio of each file's overhead to the first file's; None if a file has no such row."""
        return [overhead and overhead / self.row.overhead for overhead in self.overheads]

    @property
    def worst(self) -> float:
        return max(filter(None, self.ratios))


def compare(reports: Sequence[Report]) -> list[Comparison]:
    """Match rows of ftengine's providers by layer, phase and provider.

    Raises:
        InputError: there is only one file, files were measured with different --launch, or no row of the first file is
            in another.
    """
    if len(reports) < 2:
        raise InputError("one file has nothing to be compared with; give two or more, the one to compare with first.")
    if len({report.settings.get("launch", "call") for report in reports}) > 1:
        raise InputError("some files were measured with --launch graph and others without; they do not compare.")
    files = [{(*row.layer, row.phase, row.provider): row for row in report.rows} for report in reports]
    comparisons = [
        Comparison(row, [file[key].overhead if key in file else None for file in files])
        for key, row in files[0].items()
        if row.provider in OURS and any(key in other for other in files[1:])
    ]
    if not comparisons:
        raise InputError(
            "nothing to compare: no row of the first file (shape, rank, dtype, dropout, phase and provider "
            f"{' or '.join(OURS)}) is in another one. Measure with the same options."
        )
    return comparisons


def check_slower(comparisons: Sequence[Comparison], allowed: float) -> None:
    """Fail if a row of the compiled kernels became slower by more than a share.

    Raises:
        Slower: a row did; the message names the worst.
        InputError: there is no such row.
    """
    guarded = [comparison for comparison in comparisons if comparison.row.provider == GUARDED]
    if not guarded:
        raise InputError(
            f"--fail-over checks rows of provider {GUARDED}, but the files share none. Measure it with "
            f"--providers {GUARDED} where the kernels are compiled (`ftengine doctor`)."
        )
    slower = [comparison for comparison in guarded if comparison.worst > 1 + allowed]
    if slower:
        worst = max(slower, key=lambda comparison: comparison.worst)
        row = worst.row
        raise Slower(
            f"{len(slower)} of {len(guarded)} rows of {GUARDED} are slower than in the first file by more than "
            f"{100 * allowed:.4g} % relative to the frozen layer; the worst is {row.phase}, "
            f"{row.m}x{row.k}x{row.n}, rank {row.rank}, {row.dtype}, dropout {row.p:.3g}: {worst.worst:.3f} times."
        )


def noise(report: Report) -> str | None:
    """Return a warning if the repetitions of a measurement spread widely; None otherwise."""
    spread = median((row.p80 - row.p20) / row.p50 for row in report.rows) if report.rows else 0.0
    if spread <= NOISY:
        return None
    return (
        f"the measurement was disturbed: half of its rows spread by {100 * spread:.0f} % or more between the 20th and "
        f"the 80th percentile of their repetitions (an idle machine stays below {100 * NOISY:.0f} %). Differences of "
        "that size say nothing; measure again on an idle machine, or with a larger --seconds."
    )


def parse_share(text: str) -> float:
    """Read a percentage such as 5% as a share.

    Raises:
        InputError: it is not a percentage.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text.strip())
    if not match:
        raise InputError(f"--fail-over {text!r}: write a percentage, for example 5%.")
    return float(match[1]) / 100
