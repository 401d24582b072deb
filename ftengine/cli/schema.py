"""`ftengine schema`: the JSON schema of recipes, for editors."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from ftengine.cli.plugin_cache import cached_fact, store_facts
from ftengine.errors import InputError
from ftengine.text import printable

FILE = "recipe.schema.json"
"""The schema's file. `ftengine init` names it in a recipe if it is in the same folder."""


def first_line(file: str) -> str:
    """Return the comment that shows editors a recipe's schema."""
    return f"# yaml-language-server: $schema={file}\n"


@click.command()
@click.option(
    "--output", metavar="FILE", type=click.Path(path_type=Path), help=f"Write it to this file, such as {FILE}."
)
def schema(output: Path | None) -> None:
    """Print the JSON schema of recipes, with the installed components.

    With it, editors complete keys, names and options and mark mistakes. A recipe names the schema in its first line;
    `ftengine init` writes that line if recipe.schema.json is in the recipe's folder. Write the schema again after
    plugins are installed or removed.

    \b
    Example:
      ftengine schema --output recipe.schema.json
    """
    text = json.dumps(cached_fact("schema") or _make_schema(), indent=2, allow_nan=False)
    if output is None:
        click.echo(text)
        return
    if output.exists() and not _is_schema(output):
        raise InputError(f"{str(output)!r} exists and is not a schema of recipes. Name another file.")
    from ftengine.run.directory import writing

    with writing(output):
        output.write_text(f"{text}\n", encoding="utf-8")
    click.echo(printable(f"wrote {output}. Begin recipes beside it with: {first_line(output.name).strip()}"))


def _make_schema() -> dict[str, Any]:
    """Make the schema from the installed components, and cache it."""
    from ftengine.plugins.registry import Registry
    from ftengine.run.recipe_schema import recipe_schema

    began = time.time_ns()
    registry = Registry()
    registry.plugins.raise_if_broken()
    content = recipe_schema(registry)
    store_facts({"schema": content}, began)
    return content


def _is_schema(file: Path) -> bool:
    """Return whether a file was written by this command."""
    from ftengine.run.recipe_schema import TITLE

    try:
        return json.loads(file.read_text(encoding="utf-8")).get("title") == TITLE
    except (OSError, ValueError, AttributeError):
        return False
