"""`ftengine seeds`: one recipe with several seeds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from ftengine.evaluation import SeedFigure
    from ftengine_builtins.seeds.study import Seeds

USUAL = 3
"""Seeds to train if neither the command nor the recipe says how many."""


@click.command()
@click.argument("recipe_file", metavar="RECIPE")
@click.option(
    "--seeds", "count", type=int, help="Number of seeds; each is a run.  [default: the recipe's train.seeds, or 3]"
)
@click.option(
    "--keep",
    type=click.Choice(["median", "best"]),
    default="median",
    show_default=True,
    help="The run to use in the end, by validation loss. The best one looks better than it is.",
)
@click.option(
    "--against",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Output of another recipe's seeds on the same data: test the difference with seeds as replicates.",
)
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key of the recipe.")
@click.option("--output", metavar="DIR", help="Folder of the runs, instead of the recipe's output.")
@click.option("--json", "as_json", is_flag=True, help="Print the content of seeds.json to stdout.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks, and other libraries' warnings.")
def seeds(
    recipe_file: str,
    count: int | None,
    keep: Literal["median", "best"],
    against: Path | None,
    overrides: tuple[str, ...],
    output: str | None,
    as_json: bool,
) -> None:
    """Train a recipe with several seeds, and say what holds for other seeds too.

    All runs have the same splits; train.seed, which decides batches, dropout and new weights, differs. The intervals
    cover other seeds and other examples. The same command resumes unfinished runs and reuses finished ones.

    \b
    Examples:
      ftengine seeds recipe.yaml --seeds 5 --output runs/lora
      ftengine seeds recipe.yaml --seeds 5 --set strategy=full --output runs/full --against runs/lora
    """
    from ftengine import Recipe
    from ftengine.errors import InputError
    from ftengine_builtins.seeds.study import train_seeds

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("seeds trains one run after another in one process; call it without torchrun.")
    recipe = Recipe.read(recipe_file, overrides)
    if count is None:
        count = recipe.train.seeds if recipe.train.seeds > 1 else USUAL
    if output is not None:
        recipe = recipe.model_copy(update={"output": output})

    def announce(one: Recipe, done: bool) -> None:
        click.echo(
            f"train.seed {one.training_seed}: {'finished before, its figures are used' if done else one.output}",
            err=True,
        )

    study = train_seeds(recipe, count, keep=keep, against=against, on_run=announce)
    if as_json:
        click.echo(study.model_dump_json(indent=2))
    else:
        show(study, recipe.output)


def show(study: Seeds, output: str) -> None:
    """Print figures by seed and over all seeds, and the verdict on them."""
    from rich.console import Console
    from rich.table import Table

    from ftengine import load_run
    from ftengine.text import number, probability

    table = Table(box=None, pad_edge=False, header_style="")
    columns = [*(f"seed {run.seed}" for run in study.runs), "mean", "95 % interval", "between seeds"]
    for column in ("metric", *columns):
        table.add_column(column, justify="right" if table.columns else "left", no_wrap=True)
    for name, figure in study.tuned.items():
        if figure.low is not None:
            for label, of in ((name, figure), ("  minus base", study.difference.get(name))):
                if of is not None:
                    table.add_row(label, *map(number, of.values), *_over_seeds(of))
    out = Console(soft_wrap=True, highlight=False, markup=False)
    kept = f"{output}/{study.kept}"
    out.print(load_run(kept).verdict.headline)
    out.print(f"\ntuned models on {study.examples:,} {study.split} examples; the intervals cover seeds and examples:")
    out.print(table, crop=False)
    if study.against is not None and (figure := study.minus_other.get(study.metric)) is not None:
        mean, ends, _ = _over_seeds(figure)
        sure = f", {probability(figure.p)}" if figure.p is not None else ""
        out.print(f"\n{study.label} minus that of {study.against}, over both's seeds: {mean} ({ends}){sure}")
    out.print(f"\nkept, as the {study.keep} one by validation loss: {kept} (report: {kept}/report.html)")


def _over_seeds(figure: SeedFigure) -> tuple[str, str, str]:
    from ftengine.text import number

    ends = "" if figure.low is None else f"{number(figure.low)} to {number(figure.high)}"
    return number(figure.mean), ends, "" if figure.between is None else number(figure.between)
