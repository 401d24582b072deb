"""`ftengine studio`: a local page to judge answers, look at data and follow runs."""

from __future__ import annotations

import click


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=click.Path())
def studio(runs: tuple[str, ...]) -> None:
    """Judge answers, look at data and follow runs on a local page."""
    raise click.ClickException("the page is not built yet.")
