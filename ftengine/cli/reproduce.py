"""`ftengine reproduce`: train a run again from its record and compare the results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftengine.cli.options import PATH, json_option, require_one_process, run_argument, trust_code_option
from ftengine.cli.page import facts, page, print_json
from ftengine.run.progress import announce, listening

if TYPE_CHECKING:
    from ftengine.run.reproduction import Reproduction

STATUS = {"equal": 0, "within": 3, "different": 4, "undecided": 5}
"""Exit status; 1 and 2 are those of every command."""

OUTCOMES = {
    "equal": "the same in every bit",
    "within": "other weights, but the answers differ less than those of base and tuned model do, with their interval",
    "different": "another model",
    "undecided": "other weights, and too few held-out examples to tell whether the answers differ",
}

MEASURED = "the same weights in every bit, but other figures for their answers"


@click.command()
@run_argument
@click.option("--output", metavar="DIR", type=PATH, help="Folder of the new run. Default: RUN-again.")
@trust_code_option
@json_option
def reproduce(run_folder: str, output: str | None, trust_code: bool, as_json: bool) -> None:
    """Train a run again from its own record, and compare.

    Lists what has changed since: data, base, code, versions, machine. If data or base have changed, nothing is trained.
    Exit status: 0 the same in every bit, 3 the same within intervals, 4 different, 5 undecided.

    \b
    Example:
      ftengine reproduce runs/support
    """
    announce(f"opening {run_folder}")
    from ftengine.engine.fine_tune import load_run
    from ftengine.engine.reproduce import reproduce as again

    require_one_process("reproduce", "trains in one process")
    with listening() as listener:
        run = load_run(run_folder, listener=listener, trust_code=trust_code)
        result = again(run, output or f"{Path(run_folder)}-again")
    if as_json:
        print_json(result.to_json())
    else:
        page().print(facts(_shown(result)))
    raise click.exceptions.Exit(STATUS[result.outcome])


def _shown(result: Reproduction) -> list[tuple[str, str]]:
    from ftengine.text import with_ends

    measured = result.same_weights and result.outcome != "equal"
    lines = [("result", MEASURED if measured else OUTCOMES[result.outcome])]
    if result.output is None:
        lines.append(("trained", "nothing, as this would be another run"))
    else:
        lines.append(("trained", result.output))
    if result.difference is not None:
        lines.append((f"{result.metric}", f"{with_ends(result.difference, sign=True)} against the recorded run"))
    if result.step is not None:
        lines.append(("first step", f"{result.step:,} has another loss"))
    lines += [(f"{change.kind} differs", change.text) for change in result.changes]
    if not result.changes:
        lines.append(("recorded", "no differences in data, base, code, versions or machine"))
    return lines
