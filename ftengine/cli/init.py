"""`ftengine init`: a recipe to start from."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftengine.cli.names import component_names
from ftengine.cli.options import PATH
from ftengine.errors import InputError, SourceError, column_names
from ftengine.run.progress import announce
from ftengine.text import printable

if TYPE_CHECKING:
    from ftengine.cli.starter import Seen

RECIPE = "recipe.yaml"


@click.command()
@click.argument("file", default=RECIPE, type=click.Path(path_type=Path))
@click.option(
    "--task",
    metavar="NAME",
    shell_complete=component_names("task"),
    help="The task; `ftengine plugins list --kind task` lists them.",
)
@click.option("--model", metavar="SOURCE", type=PATH, help="Hub id, folder, .gguf file, or package://NAME/FILE.")
@click.option(
    "--data", metavar="FILE", type=PATH, multiple=True, help="The training data; given again, a further source."
)
@click.option(
    "--strategy",
    metavar="NAME",
    shell_complete=component_names("strategy"),
    help="How to tune; `ftengine plugins list --kind strategy` lists them.",
)
@click.option("--all-keys", is_flag=True, help="Write every key of a recipe with its default and what it means.")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def init(
    file: Path,
    task: str | None,
    model: str | None,
    data: tuple[str, ...],
    strategy: str | None,
    all_keys: bool,
    force: bool,
) -> None:
    """Write a recipe to start from (FILE is recipe.yaml unless named).

    The data is looked into, so that the recipe names a task that it suits and the columns that it has. FILE may be
    the data itself; then the recipe is recipe.yaml.

    \b
    Examples:
      ftengine init reviews.csv
      ftengine init support.yaml --task causal-lm --model ./SmolLM2-135M-Instruct --data support.jsonl
      ftengine init mixed.yaml --data talks.jsonl --data sums.json
    """
    announce("looking at what is installed" if model is None else f"looking at {model}")
    from ftengine.cli.components import described
    from ftengine.cli.schema import FILE, first_line
    from ftengine.cli.starter import starter, starting_first
    from ftengine.data.readers import suffixes
    from ftengine.plugins.registry import Registry

    components, readers = described(), Registry(only=["reader"])
    for kind, name in (("task", task), ("strategy", strategy)):
        if name is not None and (kind, name) not in {(one.kind, one.name) for one in components}:
            Registry().get(kind, name, f"--{kind}")
    if not data and (file.is_dir() or file.name.lower().endswith(suffixes(readers))):  # no recipe but data
        file, data = Path(RECIPE), (str(file),)
    seen, refused = _look(task, model, data) if data or model else ({}, {})
    _require_known(seen, task)
    chosen = task or next((one.task.name for one in seen.values() if one.task), None)
    if chosen is None and refused:
        fitting = [one.name for one in starting_first(components) if one.kind == "task" and one.name not in refused]
        chosen = fitting[0] if fitting else None
    text = starter(components, chosen, model, strategy, seen, all_keys=all_keys)
    if (file.parent / FILE).is_file():
        text = first_line(FILE) + text
    try:
        with open(file, "w" if force else "x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise InputError(f"{str(file)!r} exists. Name another file, or overwrite it with --force.") from None
    except OSError as error:
        raise InputError(f"cannot write {str(file)!r}: {error.strerror or error}.") from None
    for line in _remarks(seen, task):
        click.echo(printable(line), err=True)
    placeholders = [name for name, value in (("model.source", model), ("data.train", data)) if not value]
    change = f"Set {' and '.join(placeholders)} in it, then" if placeholders else "Next"
    click.echo(printable(f"wrote {file}. {change}: ftengine plan {shlex.quote(str(file))}"))


def _look(task: str | None, model: str | None, data: Sequence[str]) -> tuple[dict[str, Seen], dict[str, str]]:
    """Look into data and model; return what each source is for, and why the model is not for some tasks.

    Raises:
        InputError: the model is not for the task that is named, or that the data is for; or sources are for several.
    """
    from ftengine.cli.starter import look, refusals
    from ftengine.plugins.registry import Registry

    registry = Registry(only=["reader", "task", *(["loader"] if model else [])])
    registry.plugins.raise_if_broken()
    entries = [entry for entry in registry.entries("task") if task in (None, entry.name)]
    entries.sort(key=lambda entry: not entry.cls.traits.is_default)
    refused: dict[str, str] = {}
    if model is not None:
        try:
            refused = refusals(model, entries, registry)
        except SourceError as error:  # a recipe may be begun before its model is there
            click.echo(
                printable(f"note: could not look at the model, so nothing was checked against it: {error}"), err=True
            )
    if task in refused:
        raise InputError(f"--task {task}: {refused[task]}")
    seen = {source: look(source, entries, registry, refused) for source in data}
    kinds = {source: one.task.name for source, one in seen.items() if one.task}
    if len(set(kinds.values())) > 1:
        each = ", ".join(f"{source} for task {kind}" for source, kind in kinds.items())
        raise InputError(f"a run has one task, and the data is for several: {each}. Name one with --task.")
    forms = {
        source: ", ".join(f"{k}: {v}" for k, v in one.recognised.options.items())
        for source, one in seen.items()
        if one.task
    }
    if len(set(forms.values())) > 1:
        each = "; ".join(f"{source} asks for {form or 'none'}" for source, form in forms.items())
        raise InputError(f"a run has one set of task options, and the data is for several: {each}. Train on one form.")
    return seen, refused


def _require_known(seen: Mapping[str, Seen], task: str | None) -> None:
    """Refuse data whose columns no task knows, where none is named (InputError): no recipe would train on it."""
    for data, one in seen.items():
        if one.columns and one.task is None and task is None:
            hint = one.hint or " Name the task with --task, and rename columns in the recipe's data.columns."
            raise InputError(
                f"no installed task knows what to learn from columns {column_names(one.columns)} of {data}.{hint}"
            )


def _remarks(seen: Mapping[str, Seen], task: str | None) -> Iterator[str]:
    """Yield what a reader should know of a look into the data."""
    from ftengine.cli.starter import proposed_epochs, rows_of

    for data, one in seen.items():
        for line in _remarks_on(one, task, data):
            yield line if len(seen) == 1 else f"{data}: {line}"
    entry = next((one.task for one in seen.values() if one.task), None)
    most = None if entry is None else entry.cls.traits.most_epochs
    if entry and (rows := rows_of(seen)) and (epochs := proposed_epochs(rows, most)) > proposed_epochs(None):
        yield f"train.epochs is set to {epochs:g}, as there are {rows:,} rows; the best weights by validation are kept"


def _remarks_on(seen: Seen, task: str | None, data: str) -> Iterator[str]:
    if not seen.columns:
        return
    if seen.note:
        yield f"{data} {seen.note}"
    if seen.skipped:
        yield f"note: {seen.skipped}"
    columns = column_names(seen.columns)
    if seen.task is None:
        hint = seen.hint or " Rename them with data.columns."
        yield f"note: task {task} does not know what to learn from columns {columns}.{hint}"
        return
    renamed = ", ".join(f"{theirs} as {ours}" for ours, theirs in seen.recognised.columns.items())
    layout = f", in the layout of {seen.recognised.layout}" if seen.recognised.layout not in ("", "messages") else ""
    yield f"columns {columns}: {seen.task.name}{f', which reads {renamed}' if renamed else ''}{layout}"
    if seen.recognised.note:
        yield f"note: {seen.recognised.note}"
