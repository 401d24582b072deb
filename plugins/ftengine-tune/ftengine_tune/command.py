"""`ftengine tune`: search for hyperparameters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ftengine_tune.result import Tuning


@click.command()
@click.argument("recipe_file", metavar="RECIPE")
@click.option("--trials", default=9, show_default=True, type=int, help="Number of trials, at least two.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Time of all trials; the best one so far is then trained to its end.  [default: no limit]",
)
@click.option(
    "--set-range",
    "ranges",
    metavar="KEY=RANGE",
    multiple=True,
    help="LOW..HIGH, LOW..HIGH:log or A,B,C; may be given several times. Ranges with whole ends hold whole numbers.",
)
@click.option("--search", metavar="FILE", type=click.Path(path_type=Path), help="The same in YAML: KEY: RANGE.")
@click.option(
    "--sampler",
    type=click.Choice(["random", "tpe"]),
    default="random",
    show_default=True,
    help="Sampler that proposes values; tpe needs optuna.",
)
@click.option(
    "--no-test", is_flag=True, help="Tune without a test split; the best trial's quality on new data is then unknown."
)
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key of the recipe.")
@click.option("--output", metavar="DIR", help="Folder of the search, instead of the recipe's output.")
@click.option("--json", "as_json", is_flag=True, help="Print the content of tune.json to stdout.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks, and other libraries' warnings.")
def tune(
    recipe_file: str,
    trials: int,
    minutes: float | None,
    ranges: tuple[str, ...],
    search: Path | None,
    sampler: str,
    no_test: bool,
    overrides: tuple[str, ...],
    output: str | None,
    as_json: bool,
) -> None:
    """Search for the learning rate and other options with which a recipe has the lowest validation loss.

    Trials train a ninth of their steps, then a third, then all. After each rung, those that are surely behind another
    by a paired test on the validation examples are dropped, and the search ends where it cannot tell the others apart.
    The best trial is measured on the test split, once. Without --set-range or --search, the learning rate is searched,
    and the strategy's rank and dropout where it has them. The same command goes on with what was interrupted.

    \b
    Examples:
      ftengine tune recipe.yaml --trials 12 --output runs/tuned
      ftengine tune recipe.yaml --minutes 30 --set-range train.learning_rate=1e-5..1e-3:log
      ftengine train runs/tuned/best.yaml
    """
    from ftengine import Recipe, listening
    from ftengine.errors import InputError
    from ftengine_tune.search import tune as run
    from ftengine_tune.space import parse, read_space

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("tune runs its trials one after another in one process; call it without torchrun.")
    recipe = Recipe.read(recipe_file, overrides)
    if output is not None:
        recipe = recipe.model_copy(update={"output": output})
    space = read_space(search) if search is not None else []
    for text in ranges:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set-range {text!r}: write KEY=RANGE, for example train.learning_rate=1e-5..1e-3:log.")
        space.append(parse(key.strip(), value.strip(), f"--set-range {text!r}"))
    with listening() as listener:
        try:
            tuning = run(
                recipe,
                trials=trials,
                space=space,
                sampler=sampler,
                minutes=minutes,
                test=not no_test,
                listener=listener,
            )
        except KeyboardInterrupt:
            listener.message("trials are kept as far as they are trained; the same command goes on from there")
            raise
    if as_json:
        click.echo(tuning.model_dump_json(indent=2))
    else:
        show(tuning)


def show(tuning: Tuning) -> None:
    """Print the trials, best first, and the result."""
    from rich.console import Console
    from rich.table import Table

    from ftengine.text import number
    from ftengine_tune.result import outcome, ranked
    from ftengine_tune.space import shown

    table = Table(box=None, pad_edge=False, header_style="")
    keys = [dimension["key"] for dimension in tuning.space]
    for column in ("trial", *(key.partition(".")[2] for key in keys), "steps", "validation loss", "seconds"):
        table.add_column(column, justify="right")
    table.add_column("outcome")
    for trial in ranked(tuning):
        values = [shown(trial.values[key]) for key in keys]
        measured = f"{trial.trained:,}", number(trial.loss, 4), f"{trial.seconds:,.1f}"
        table.add_row(f"{trial.number:,}", *values, *measured, outcome(trial, tuning))
    Console(soft_wrap=True, highlight=False, markup=False).print(table)
    for trial in tuning.in_state("failed"):
        click.echo(f"trial {trial.number} failed: {trial.reason}")
    assert tuning.best is not None
    click.echo(f"\n{tuning.statement}\n")
    click.echo(f"the best trial's run: {tuning.of(tuning.best).run}")
    click.echo(f"its recipe on all splits: {tuning.best_recipe} (`ftengine train {tuning.best_recipe}`)")
