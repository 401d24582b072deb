"""`ftengine compare`: several strategies on the same data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ftengine.cli.failure import SAVED, report_errors
from ftengine.cli.options import json_option, output_option, recipe_argument, require_one_process, set_option
from ftengine.cli.page import page, print_json, table
from ftengine.errors import InputError, load_yaml
from ftengine.run.progress import announce, listening
from ftengine.text import duration, number, percent, sample_size, size, with_ends

if TYPE_CHECKING:
    from ftengine.run.comparison import Comparison

RATE = "train.learning_rate"
"""If `--set` sets this key, all strategies train at its value."""


@click.command()
@recipe_argument
@click.option(
    "--strategies",
    required=True,
    metavar="LIST",
    help="Names, separated by commas; or {name: NAME, OPTION: VALUE, train.KEY: VALUE} to set options. "
    "`ftengine plugins list --kind strategy` lists them.",
)
@set_option
@click.option("--metric", metavar="NAME", help="Metric to compare by. Default: the verdict's.")
@click.option("--all-pairs", is_flag=True, help="Compare every pair, not only the best with each other strategy.")
@output_option
@json_option
def compare(
    recipe_file: str,
    strategies: str,
    overrides: tuple[str, ...],
    metric: str | None,
    all_pairs: bool,
    output: str | None,
    as_json: bool,
) -> None:
    """Train several strategies on the same data and compare them.

    Each strategy is a run in its own process and folder. The same command resumes unfinished runs and reuses
    finished ones. With train.seeds, each is trained with several seeds, and differences are tested with seeds as
    replicates.

    \b
    Examples:
      ftengine compare recipe.yaml --strategies ONE,OTHER --output runs/compared
      ftengine compare recipe.yaml --strategies "ONE,{name: OTHER, train.learning_rate: 1.0e-3}"
      ftengine compare recipe.yaml --strategies ONE,OTHER --set train.seeds=3
    """
    announce(f"reading {recipe_file}")
    from ftengine.engine.compare import compare_strategies
    from ftengine.run.recipe import Recipe

    require_one_process("compare", "starts processes of its own")
    recipe = Recipe.read(recipe_file, overrides)
    if output is not None:
        recipe = recipe.model_copy(update={"output": output})
    specs = parse_strategies(strategies)
    with listening() as listener, report_errors(listener, lambda: SAVED):
        result = compare_strategies(
            recipe,
            specs,
            metric=metric,
            all_pairs=all_pairs,
            same_rate=any(override.startswith(f"{RATE}=") for override in overrides),
            listener=listener,
        )
    if as_json:
        print_json(result.to_json())
    else:
        show(result)


def parse_strategies(text: str) -> list[Any]:
    """Read a YAML list without its brackets (InputError: it cannot be parsed)."""
    import yaml

    try:
        return load_yaml(f"[{text}]")
    except yaml.YAMLError:
        hint = "Write names separated by commas, or {name: NAME, OPTION: VALUE}."
        raise InputError(f"--strategies {text!r} cannot be read. {hint}") from None


def show(comparison: Comparison) -> None:
    """Print the table of strategies and the conclusion that it supports."""
    direction = {True: ", higher is better", False: ", lower is better", None: ""}[comparison.higher_is_better]
    out = page()

    on = sample_size(comparison.examples, comparison.rows)
    lead = f"{comparison.metric} on {comparison.split} ({on}{direction})"
    out.print(f"{lead}, with 95 % intervals:")
    measured = ("peak memory", "time per step", "on disk")
    several = comparison.seeds > 1
    spread = ["between seeds"] if several else []
    columns = ("strategy", comparison.metric, *spread, "learning rate", "trainable", "", *measured)
    rows = [("(base)", with_ends(comparison.base), *("",) * (len(columns) - 2))]
    rows += [
        (
            row.label,
            with_ends(row.quality),
            *([number(row.between)] if several else []),
            number(row.learning_rate),
            f"{row.trainable_parameters:,}",
            percent(row.trainable_parameters / row.total_parameters),
            size(row.peak_memory_bytes),
            _pace(row.step_seconds),
            size(row.disk_bytes),
        )
        for row in comparison.strategies
    ]
    out.print(table(columns, rows, left=2))
    out.print(f"\n{comparison.statement}")


def _pace(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return duration(seconds) if seconds >= 1 else f"{1000 * seconds:.0f} ms"
