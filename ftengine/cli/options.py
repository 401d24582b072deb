"""Options that several commands share."""

from __future__ import annotations

import os

import click

from ftengine.cli.names import overrides
from ftengine.errors import InputError

PATH = click.Path(readable=False)
"""A path as text, which the shell completes; the command checks later whether it can be read."""

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print only JSON to stdout, everything else to stderr."
)

set_option = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    shell_complete=overrides,
    help="Override a key of the recipe, e.g. train.max_steps=40; may be given several times.",
)

output_option = click.option(
    "--output", metavar="DIR", type=PATH, help="Folder for the runs, in place of the recipe's output."
)

precision_option = click.option(
    "--precision", type=click.Choice(["float32", "bfloat16", "float16"]), help="Default: the recipe's train.precision."
)

trust_code_option = click.option(
    "--trust-code",
    is_flag=True,
    help="Let the run import the Python code that its recipe names; review that code first.",
)

recipe_argument = click.argument("recipe_file", metavar="RECIPE", type=PATH)
run_argument = click.argument("run_folder", metavar="RUN", type=PATH)


def require_one_process(command: str, does: str) -> None:
    """Refuse to run under a launcher of several processes (InputError); `does` is the reason."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"{command} {does}; call it without torchrun or accelerate launch.")


def add_debug(command: click.Command) -> None:
    """Add the option `--debug` to a command and its subcommands; `Commands.main` reads it before click does."""
    if not any("--debug" in parameter.opts for parameter in command.params):
        text = "Show tracebacks, and other libraries' warnings."
        command.params.append(click.Option(["--debug"], is_flag=True, expose_value=False, help=text))
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        add_debug(inner)
