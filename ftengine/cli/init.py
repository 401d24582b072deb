"""`ftengine init`: a recipe to start from."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from ftengine.cli.options import debug_option
from ftengine.report.text import printable


@click.command()
@click.argument("file", default="recipe.yaml", type=click.Path(path_type=Path))
@click.option("--task", metavar="NAME", help="The task; `ftengine plugins list --kind task` lists them.")
@click.option("--model", metavar="SOURCE", help="Hub id, folder, .gguf file, or package://NAME/FILE.")
@click.option("--data", metavar="FILE", help="The training data.")
@click.option("--strategy", metavar="NAME", help="How to tune; `ftengine plugins list --kind strategy` lists them.")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@debug_option
def init(file: Path, task: str | None, model: str | None, data: str | None, strategy: str | None, force: bool) -> None:
    """Write a commented recipe to start from (FILE is recipe.yaml unless named).

    \b
    Example:
      ftengine init support.yaml --task causal-lm --model ./SmolLM2-135M-Instruct --data support.jsonl
    """
    from ftengine.cli.starter import starter
    from ftengine.errors import InputError
    from ftengine.plugins.registry import Registry

    registry = Registry()
    registry.plugins.raise_if_broken()
    text = starter(registry, task=task, model=model, data=data, strategy=strategy)
    try:
        with open(file, "w" if force else "x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise InputError(f"{str(file)!r} exists. Name another file, or overwrite it with --force.") from None
    except OSError as error:
        raise InputError(f"cannot write {str(file)!r}: {error.strerror or error}.") from None
    placeholders = [name for name, value in (("model.source", model), ("data.train", data)) if value is None]
    change = f"Set {' and '.join(placeholders)} in it, then" if placeholders else "Next"
    if data is not None and Path(data).suffix and not Path(data).exists():
        click.echo(printable(f"note: there is no {data!r} yet"), err=True)
    click.echo(printable(f"wrote {file}. {change}: ftengine plan {shlex.quote(str(file))}"))
