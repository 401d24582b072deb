"""`ftengine cross-validate`: every example held out once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftengine.cli.failure import SAVED, report_errors
from ftengine.cli.figures import figure_table, show_verdict
from ftengine.cli.options import json_option, output_option, recipe_argument, require_one_process, set_option
from ftengine.cli.page import page, print_json, table
from ftengine.run.progress import announce, listening
from ftengine.text import number, one_line, printable, sample_size

if TYPE_CHECKING:
    from rich.table import Table

    from ftengine.run.cross_validation import CrossValidation, Spread


@click.command()
@recipe_argument
@click.option("--folds", type=int, default=5, show_default=True, help="Number of folds; one run is trained for each.")
@set_option
@output_option
@json_option
def cross_validate(recipe_file: str, folds: int, overrides: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Cross-validate: train one model per fold, and pool their held-out metrics.

    Suits small data, where a single test split would be too small to show a difference. Each fold is a run in its own
    process and folder. The same command resumes unfinished runs and reuses finished ones. With train.seeds, each fold
    is trained with several seeds, and intervals cover seeds and examples.

    \b
    Example:
      ftengine cross-validate recipe.yaml --folds 5 --output runs/folds
    """
    announce(f"reading {recipe_file}")
    from ftengine.engine.cross_validate import cross_validate as validate
    from ftengine.engine.cross_validate import require_folds
    from ftengine.run.recipe import Recipe

    require_one_process("cross-validate", "starts processes of its own")
    require_folds(folds)
    # The folds are part of the recipe, as they may be its only split.
    recipe = Recipe.read(recipe_file, [*overrides, f"data.split.folds={folds}", "data.split.fold=0"])
    if output is not None:
        recipe = recipe.model_copy(update={"output": output})
    with listening() as listener, report_errors(listener, lambda: SAVED):
        result = validate(recipe, folds, listener=listener)
    if as_json:
        print_json(result.to_json())
    else:
        show(result)
        figures = Path(recipe.output) / result.file
        click.echo(printable(f"\nfigures: {figures}; each fold's verdict and report are in its own folder beside it"))


def show(result: CrossValidation) -> None:
    """Print the verdict, the pooled figures, the figures by fold, and what the intervals cover."""
    from ftengine.run.records import Verdict

    out = page()
    show_verdict(out, Verdict(headline=result.verdict.text, level=result.verdict.level, findings=(result.verdict,)))
    held_out = sample_size(result.examples, result.rows)
    out.print(f"\n{result.folds} folds, {held_out} each held out once, with 95 % intervals:")
    out.print(figure_table(result.base, result.tuned, result.difference, {}))
    for baseline in result.baselines.values():
        reached = [f"{name} {number(value)}" for name, value in baseline.figures.items() if name in result.tuned]
        lead = f"baseline that ignores the inputs (e.g. always {baseline.answer!r})"
        out.print(one_line(f"{lead}: {', '.join(reached)}"))
    out.print("\ntuned models, fold by fold:")
    examples = {run.fold: f"{run.examples:,}" for run in result.runs}
    counted = ("(examples)" if result.rows is None else "(groups)", *examples.values(), "", "")
    out.print(_spreads(result.spread, [f"fold {fold}" for fold in examples], counted))
    if result.seeds:
        seeds = len(result.runs) // result.folds
        out.print("\ntuned models over all examples, seed by seed:")
        out.print(_spreads(result.seeds, [f"seed {number}" for number in range(1, seeds + 1)]))
    out.print(f"\n{result.statement}")


def _spreads(spreads: Mapping[str, Spread], columns: Sequence[str], *more: tuple[str, ...]) -> Table:
    rows = [(name, *map(number, (*spread.values, spread.mean, spread.std))) for name, spread in spreads.items()]
    return table(("metric", *columns, "mean", "std"), [*rows, *more])
