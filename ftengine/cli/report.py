"""`ftengine report`: write the HTML report of finished runs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from ftengine.api import Finding
from ftengine.cli import compare, crossvalidate
from ftengine.cli.figures import show_verdict
from ftengine.cli.options import PATH, json_option
from ftengine.cli.page import page, print_json
from ftengine.errors import FtengineError, InputError
from ftengine.run.progress import announce
from ftengine.text import printable


@click.command()
@click.argument("runs", metavar="RUN...", type=PATH, nargs=-1, required=True)
@click.option(
    "--output", metavar="FILE", type=PATH, help="File of the page. Default for one run: report.html in its folder."
)
@click.option("--renew", is_flag=True, help="Judge the runs again, as by rules or judgements that came later.")
@json_option
def report(runs: tuple[str, ...], output: str | None, renew: bool, as_json: bool) -> None:
    """Write an HTML report on finished runs, and print their verdicts.

    RUN is one run, several runs side by side (with --output), or a folder of runs that compare or cross-validate made.
    The page is one file that loads nothing from elsewhere. With --json, the verdicts are printed as JSON.

    \b
    Examples:
      ftengine report runs/support
      ftengine report runs/first runs/second --output both.html
      ftengine report runs/compared
    """
    announce(f"reading {' '.join(runs)}")
    from ftengine.report.write import REPORT, conclude_again, later, runs_in, verdict_of, write_report
    from ftengine.run.directory import RunDirectory

    study = overview = None
    if len(runs) == 1 and (inside := runs_in(runs[0])) != [Path(runs[0])]:
        from ftengine.engine import side_by_side
        from ftengine.run.comparison import Comparison

        study = side_by_side.together(runs[0])
        output = output or str(Path(runs[0]) / REPORT)
        runs = tuple(map(str, inside))
    if len(runs) > 1 and output is None and not as_json:
        raise InputError(f"{len(runs)} runs share one page. Choose its file with --output FILE.")
    for run in runs:
        if renew:
            conclude_again(RunDirectory(run))
        else:
            _show_later(run, later)
    if output is not None or not as_json:
        if len(runs) > 1:  # one run needs no imports of the engine
            from ftengine.engine import side_by_side

            overview = side_by_side.overview(runs, study)
        target = write_report(runs, output, overview)
    if as_json:
        verdicts = [{"run": run, **verdict_of(run).to_json()} for run in runs]
        print_json(verdicts[0] if len(runs) == 1 else verdicts)
        return
    out = page()
    if study is not None:
        if isinstance(study, Comparison):
            compare.show(study)
        else:
            crossvalidate.show(study)
        out.print()
    for run in runs:
        if len(runs) > 1:
            out.print(f"{run}:")
        show_verdict(out, verdict_of(run))
        out.print()
    out.print(f"report: {target}", soft_wrap=True)


def _show_later(run: str, later: Callable[[str], Sequence[Finding]]) -> None:
    """Print to stderr what has come since the verdict, and how to take it in."""
    try:
        for finding in later(run):
            text = (finding.brief or finding.text).rstrip(".")
            renew = f"ftengine report {shlex.quote(run)} --renew"
            click.echo(printable(f"not in the verdict yet ({finding.source}): {text}; `{renew}` takes it in"), err=True)
    except FtengineError as error:
        click.echo(printable(f"cannot tell what has come since the verdict of {run!r}: {error}"), err=True)
