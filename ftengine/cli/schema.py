"""`ftengine schema`: recipes as editors read them."""

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
"""The file that `ftengine init` names in a recipe, where it lies beside it."""


def first_line(file: str) -> str:
    """Return the comment by which editors find a recipe's schema."""
    return f"# yaml-language-server: $schema={file}\n"


@click.command()
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help=f"Write it there, such as {FILE}.")
def schema(output: Path | None) -> None:
    """Print the JSON schema of recipes, with the installed components.

    With it, editors complete keys, names and options and mark what is wrong. A recipe names it in its first line;
    `ftengine init` writes that line where recipe.schema.json lies beside the recipe. Write it again when plugins are
    installed or removed.

    \b
    Example:
      ftengine schema --output recipe.schema.json
    """
    text = json.dumps(cached_fact("schema") or _ask(), indent=2, allow_nan=False)
    if output is None:
        click.echo(text)
        return
    if output.exists() and not _is_schema(output):
        raise InputError(f"{str(output)!r} exists and is not a schema of recipes. Name another file.")
    from ftengine.run.directory import writing

    with writing(output):
        output.write_text(f"{text}\n", encoding="utf-8")
    click.echo(printable(f"wrote {output}. Begin recipes beside it with: {first_line(output.name).strip()}"))


def _ask() -> dict[str, Any]:
    """Return the schema of what plugins offer, which is asked of them now."""
    from ftengine.plugins.registry import Registry
    from ftengine.run.recipe_schema import recipe_schema

    began = time.time_ns()
    registry = Registry()
    registry.plugins.raise_if_broken()
    content = recipe_schema(registry)
    store_facts({"schema": content}, began)
    return content


def _is_schema(file: Path) -> bool:
    """Say whether a file is what this command wrote before."""
    from ftengine.run.recipe_schema import TITLE

    try:
        return json.loads(file.read_text(encoding="utf-8")).get("title") == TITLE
    except (OSError, ValueError, AttributeError):
        return False
