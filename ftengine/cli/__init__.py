"""The command line: it parses options and prints results; all decisions are made in the engine.

Every command has its own module, which is imported when the command is called, and each is a short Python call as
well. Only click and the standard library are imported here, so that `--help` is quick.
"""

from __future__ import annotations

import click

from ftengine import __version__
from ftengine.cli.group import Commands

COMMANDS = {
    "init": ("ftengine.cli.init:init", "Write a recipe to start from."),
    "plan": ("ftengine.cli.plan:plan", "Show what a recipe would do, without training."),
    "train": ("ftengine.cli.train:train", "Fine-tune a model as a recipe says."),
    "evaluate": ("ftengine.cli.evaluate:evaluate", "Compare a tuned model with its base."),
    "predict": ("ftengine.cli.predict:predict", "Answer the rows of a file with a tuned model."),
    "chat": ("ftengine.cli.chat:chat", "Talk with a tuned model, its base, or both."),
    "merge": ("ftengine.cli.merge:merge", "Merge the trained part into the base and save a plain model."),
    "export": ("ftengine.cli.export:export", "Write a tuned model in another program's format, and prove it."),
    "verify": (
        "ftengine.cli.verify:verify",
        "Say which model an endpoint serves: the tuned one or its base.",
    ),
    "reproduce": ("ftengine.cli.reproduce:reproduce", "Train a run again from its own record, and compare."),
    "report": ("ftengine.cli.report:report", "Write an HTML report on finished runs, and print their verdicts."),
    "compare": ("ftengine.cli.compare:compare", "Train several strategies on the same data and compare them."),
    "cross-validate": (
        "ftengine.cli.crossvalidate:cross_validate",
        "Cross-validate: train one model per fold, and pool their held-out metrics.",
    ),
    "plugins": ("ftengine.cli.plugins:plugins", "List, describe, check and create plugins."),
    "schema": ("ftengine.cli.schema:schema", "Print the JSON schema of recipes, with the installed components."),
    "completion": (
        "ftengine.cli.completion:completion",
        "Print a script that makes a shell complete commands, options and names.",
    ),
    "doctor": ("ftengine.cli.doctor:doctor", "Check this installation and say what to repair."),
}
"""Commands in the order in which a new user needs them: `module:object`, and the line in `ftengine --help`."""


@click.group(cls=Commands, builtin=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="ftengine", message="%(prog)s %(version)s")
def main() -> None:
    """Fine-tune pre-trained models, and compare them with their base.

    Begin with `ftengine init`, look at `ftengine plan`, then `ftengine train`.
    """
