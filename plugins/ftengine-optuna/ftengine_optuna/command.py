"""`ftengine tune`: search for hyperparameters."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ftengine_optuna.result import Tuning


@click.command()
@click.argument("recipe_file", metavar="RECIPE")
@click.option(
    "--trials", required=True, type=click.IntRange(min=1), help="Total number of trials, including finished ones."
)
@click.option(
    "--set-range",
    "ranges",
    metavar="KEY=RANGE",
    multiple=True,
    help="LOW..HIGH, LOW..HIGH:log or A,B,C; may be given several times. Ranges with whole ends hold whole numbers.",
)
@click.option("--search", metavar="FILE", type=click.Path(path_type=Path), help="The same in YAML: KEY: RANGE.")
@click.option("--metric", metavar="NAME", help="Metric to compare trials by. Default: the verdict's.")
@click.option(
    "--sampler",
    type=click.Choice(["tpe", "random"]),
    default="tpe",
    show_default=True,
    help="Sampler that proposes values.",
)
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Start no further trial after this time."
)
@click.option(
    "--no-test", is_flag=True, help="Tune without a test split; the best trial's quality on new data is then unknown."
)
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key of the recipe.")
@click.option("--output", metavar="DIR", help="Folder of the trials, instead of the recipe's output.")
@click.option("--json", "as_json", is_flag=True, help="Print the content of tune.json to stdout.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks, and other libraries' warnings.")
def tune(
    recipe_file: str,
    trials: int,
    ranges: tuple[str, ...],
    search: Path | None,
    metric: str | None,
    sampler: str,
    timeout: float | None,
    no_test: bool,
    overrides: tuple[str, ...],
    output: str | None,
    as_json: bool,
) -> None:
    """Search for the best learning rate and other options of a recipe.

    Trials train on the training split and are compared on validation; the first has the recipe's own values. The best
    one is measured on the test split, once, at the end. Without --set-range or --search, the learning rate is searched,
    and the strategy's rank and dropout where it has them. The same command goes on with what was interrupted.

    \b
    Examples:
      ftengine tune recipe.yaml --trials 20 --output runs/tuned
      ftengine tune recipe.yaml --trials 9 --set-range train.learning_rate=1e-5..1e-3:log --set-range strategy.rank=4,8
      ftengine train runs/tuned/best.yaml
    """
    from ftengine import Recipe
    from ftengine.errors import InputError
    from ftengine_optuna.search import tune as run
    from ftengine_optuna.space import parse, read_space

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
    with _listening(trials) as listener:
        try:
            tuning = run(
                recipe,
                trials=trials,
                space=space,
                metric=metric,
                sampler=sampler,
                timeout=timeout,
                test=not no_test,
                listener=listener,
            )
        except KeyboardInterrupt:
            listener.message("finished trials are kept; the same command goes on from there")
            raise
    if as_json:
        click.echo(tuning.model_dump_json(indent=2))
    else:
        show(tuning)


def show(tuning: Tuning) -> None:
    """Print the trials, best first, and the result."""
    from rich.console import Console
    from rich.table import Table

    from ftengine.text import interval, plain
    from ftengine_optuna.result import ranked
    from ftengine_optuna.space import shown

    table = Table(box=None, pad_edge=False, header_style="")
    keys = [dimension["key"] for dimension in tuning.space]
    for column in ("trial", *(key.partition(".")[2] for key in keys), tuning.metric, "95 % interval", "seconds"):
        table.add_column(column, justify="right")
    for trial in ranked(tuning.trials, tuning.higher_is_better):
        values = [shown(trial.values[key]) for key in keys]
        table.add_row(
            f"{trial.number:,}", *values, plain(trial.figure), interval(trial.figure), f"{trial.seconds:,.1f}"
        )
    Console().print(table)
    for trial in tuning.trials:
        if trial.state == "failed":
            click.echo(f"trial {trial.number} failed: {trial.reason}")
    click.echo(f"\n{tuning.statement}\n")
    click.echo(
        f"the best one's recipe: {tuning.recipe}; `ftengine train {tuning.recipe}` trains it as a run of its own"
    )


@contextmanager
def _listening(trials: int) -> Iterator[Any]:
    """Give a listener that prints a line a trial to stderr, and on a terminal shows how many are done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("tune", total=trials)

        class Lines:
            """Trials as lines, phases as what the bar says."""

            def phase(self, name: str, total: int | None = None) -> None:
                bar.update(task, description=name)

            def advance(self, steps: int = 1, **figures: float) -> None: ...

            def message(self, text: str) -> None:
                bar.console.print(text)
                if text.startswith("trial "):
                    bar.advance(task)

        yield Lines()
