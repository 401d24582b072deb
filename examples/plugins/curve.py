"""A command, offered by an entry point of the group `ftengine.commands`; it is imported only when it is called."""

import click

from ftengine import load_run


@click.command()
@click.argument("run")
def curve(run):
    """Print the validation losses of a run."""
    for line in load_run(run).metrics:
        if "validation_loss" in line:
            click.echo(f"{line['step']}: {line['validation_loss']:.4f}")
