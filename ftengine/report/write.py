"""Writing and reading verdict.json and report.html."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ftengine.api import Finding
from ftengine.plugins.registry import Registry
from ftengine.report.page import Overview, render
from ftengine.report.verdict import judge, later_findings
from ftengine.run.directory import RunDirectory
from ftengine.run.records import EvaluationResult, RunRecords, Verdict
from ftengine.run.seal import Seal, is_sealed, require_sealed, resealed

REPORT = "report.html"


def conclude(run: RunDirectory, registry: Registry | None = None, figures: EvaluationResult | None = None) -> Verdict:
    """Write verdict.json and report.html of a run whose other files are complete; return the verdict.

    New `figures` are written to evaluation.json after verdict and page are made from them.
    """
    records = sealed_records(run.path)
    if figures is not None:
        records = replace(records, evaluation=EvaluationResult.model_validate(figures.to_json()))
    verdict = judge(records, registry)
    page = render([(records, verdict)], names_of([run.path]))
    with resealed(run):
        if figures is not None:
            figures.write(run)
        verdict.write(run)
        run.write_text(REPORT, page)
    return verdict


def conclude_again(run: RunDirectory, registry: Registry | None = None) -> Verdict:
    """Judge a finished run again and rewrite verdict and report; of several processes, one after the other."""
    run.require_finished()
    with run.records_locked():
        return conclude(run, registry)


def concluded(run: RunDirectory) -> bool:
    """Return whether a run has its verdict, its report, and the seal, which is written last."""
    return is_sealed(run) and all((run.path / name).is_file() for name in (Verdict.file, REPORT))


def sealed_records(path: str | Path) -> RunRecords:
    """Read a finished run (RunError as of `RunRecords.read`, or if a record changed after the run finished)."""
    records = RunRecords.read(path)
    require_sealed(RunDirectory(path))
    return records


def verdict_of(path: str | Path) -> Verdict:
    """Return the recorded verdict on a finished run (RunError: it cannot be read, or was changed)."""
    run = RunDirectory(path)
    run.require_finished(Verdict.file)
    require_sealed(run)
    return Verdict.read(run)


def later(path: str | Path) -> Sequence[Finding]:
    """Return what has come to a finished run since its verdict was made, as by judgements of its answers."""
    records, verdict = sealed_records(path), verdict_of(path)
    sealed = (records.path / Seal.file).stat().st_mtime_ns if is_sealed(RunDirectory(path)) else 0
    others = (file for file in records.path.iterdir() if file.is_file() and file.name != REPORT)
    if all(file.stat().st_mtime_ns <= sealed for file in others):  # plugins take seconds to load
        return []
    return later_findings(records, verdict)


def runs_in(path: str | Path) -> list[Path]:
    """Return a run's folder, or the finished runs in a folder of several runs (as `compare` writes it), by name.

    Runs of several seeds are in a folder for each strategy or fold.
    """
    path = Path(path)
    if RunDirectory(path).is_run() or not path.is_dir():
        return [path]

    def order(run: Path) -> list[int | str]:
        name = str(run.relative_to(path))
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]

    inside = [*path.glob("*"), *path.glob("*/seed-*")]
    finished = [inner for inner in inside if inner.is_dir() and RunDirectory(inner).finished]
    return sorted(finished, key=order) or [path]


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return a name for each run: its folder, with as many parents as make the names differ."""
    for depth in range(1, 6):
        names = ["/".join(path.resolve().parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def write_report(runs: Sequence[str | Path], file: str | Path | None = None, overview: Overview | None = None) -> Path:
    """Write the page on finished runs; `file` is by default report.html in the folder of a single run.

    Raises:
        RunError: a folder holds no finished run, or the file cannot be written.
    """
    read = [(sealed_records(path), verdict_of(path)) for path in runs]
    paths = [run.path for run, _ in read]
    target = Path(file) if file is not None else paths[0] / REPORT
    text = render(read, names_of(paths), overview)
    folder = RunDirectory(target.parent)
    folder.create()
    return folder.write_text(target.name, text)
