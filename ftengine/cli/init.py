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
    from ftengine.cli.starter import Inspection

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
    "--data",
    metavar="FILE",
    type=PATH,
    multiple=True,
    help="The training data; may be given several times, for several sources.",
)
@click.option(
    "--strategy",
    metavar="NAME",
    shell_complete=component_names("strategy"),
    help="How to tune; `ftengine plugins list --kind strategy` lists them.",
)
@click.option("--all-keys", is_flag=True, help="Write every key of a recipe with its default and meaning.")
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

    ftengine reads the first rows of the data, and writes the task that suits them and their columns into the recipe.
    FILE may be the data itself; the recipe is then recipe.yaml.

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
        if name is not None and (kind, name) not in {(c.kind, c.name) for c in components}:
            Registry().get(kind, name, f"--{kind}")
    if not data and (file.is_dir() or file.name.lower().endswith(suffixes(readers))):  # no recipe but data
        file, data = Path(RECIPE), (str(file),)
    inspections, refused = _inspect(task, model, data) if data or model else ({}, {})
    _require_task(inspections, task)
    chosen = task or next((inspection.task.name for inspection in inspections.values() if inspection.task), None)
    if chosen is None and refused:
        fitting = [c.name for c in starting_first(components) if c.kind == "task" and c.name not in refused]
        chosen = fitting[0] if fitting else None
    text = starter(components, chosen, model, strategy, inspections, all_keys=all_keys)
    if (file.parent / FILE).is_file():
        text = first_line(FILE) + text
    try:
        with open(file, "w" if force else "x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise InputError(f"{str(file)!r} exists. Name another file, or overwrite it with --force.") from None
    except OSError as error:
        raise InputError(f"cannot write {str(file)!r}: {error.strerror or error}.") from None
    for line in _remarks(inspections, task):
        click.echo(printable(line), err=True)
    placeholders = [name for name, value in (("model.source", model), ("data.train", data)) if not value]
    change = f"Set {' and '.join(placeholders)} in it, then" if placeholders else "Next"
    click.echo(printable(f"wrote {file}. {change}: ftengine plan {shlex.quote(str(file))}"))


def _inspect(task: str | None, model: str | None, data: Sequence[str]) -> tuple[dict[str, Inspection], dict[str, str]]:
    """Inspect data and model; return the inspection by source, and by task why the model cannot do it.

    Raises:
        InputError: the model cannot do the named task, or none that suits the data; or sources suit several tasks.
    """
    from ftengine.cli.starter import inspect_data, refusals
    from ftengine.plugins.registry import Registry

    registry = Registry(only=["reader", "task", *(["loader"] if model else [])])
    registry.plugins.raise_if_broken()
    entries = [entry for entry in registry.entries("task") if task in (None, entry.name)]
    entries.sort(key=lambda entry: not entry.cls.traits.is_default)
    refused: dict[str, str] = {}
    if model is not None:
        try:
            refused = refusals(model, entries, registry)
        except SourceError as error:  # a recipe may be written before its model is there
            click.echo(
                printable(f"note: could not look at the model, so task and data are not checked against it: {error}"),
                err=True,
            )
    if task in refused:
        raise InputError(f"--task {task}: {refused[task]}")
    inspections = {source: inspect_data(source, entries, registry, refused) for source in data}
    kinds = {source: inspection.task.name for source, inspection in inspections.items() if inspection.task}
    if len(set(kinds.values())) > 1:
        each = ", ".join(f"{source} for task {kind}" for source, kind in kinds.items())
        raise InputError(f"a run has one task, and the sources suit several: {each}. Choose a task with --task.")
    forms = {
        source: ", ".join(f"{k}: {v}" for k, v in inspection.recognised.options.items())
        for source, inspection in inspections.items()
        if inspection.task
    }
    if len(set(forms.values())) > 1:
        each = "; ".join(f"{source} needs {form or 'none'}" for source, form in forms.items())
        raise InputError(
            f"a run has one set of task options, and the sources need different ones: {each}. Train on one form."
        )
    return inspections, refused


def _require_task(inspections: Mapping[str, Inspection], task: str | None) -> None:
    """Refuse data that no installed task can train on, unless the user names a task (InputError)."""
    for data, inspection in inspections.items():
        if inspection.columns and inspection.task is None and task is None:
            hint = inspection.hint or " Name the task with --task, and rename columns in the recipe's data.columns."
            raise InputError(
                f"no installed task can train on columns {column_names(inspection.columns)} of {data}.{hint}"
            )


def _remarks(inspections: Mapping[str, Inspection], task: str | None) -> Iterator[str]:
    """Yield lines for the user about the data: its columns and task, skipped rows, a changed number of epochs."""
    from ftengine.cli.starter import proposed_epochs, rows_of

    for data, inspection in inspections.items():
        for line in _remarks_on(inspection, task, data):
            yield line if len(inspections) == 1 else f"{data}: {line}"
    entry = next((inspection.task for inspection in inspections.values() if inspection.task), None)
    most = None if entry is None else entry.cls.traits.most_epochs
    if entry and (rows := rows_of(inspections)) and (epochs := proposed_epochs(rows, most)) > proposed_epochs(None):
        yield f"train.epochs is set to {epochs:g}, as there are {rows:,} rows; the best weights by validation are kept"


def _remarks_on(inspection: Inspection, task: str | None, data: str) -> Iterator[str]:
    if not inspection.columns:
        return
    if inspection.note:
        yield f"{data} {inspection.note}"
    if inspection.skipped:
        yield f"note: {inspection.skipped}"
    columns = column_names(inspection.columns)
    if inspection.task is None:
        hint = inspection.hint or " Rename them with data.columns."
        yield f"note: task {task} does not recognise columns {columns}.{hint}"
        return
    recognised = inspection.recognised
    renamed = ", ".join(f"{theirs} as {ours}" for ours, theirs in recognised.columns.items())
    layout = f", in the layout of {recognised.layout}" if recognised.layout not in ("", "messages") else ""
    yield f"columns {columns}: {inspection.task.name}{f', which reads {renamed}' if renamed else ''}{layout}"
    if recognised.note:
        yield f"note: {recognised.note}"
