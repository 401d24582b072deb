"""`ftengine train`: fine-tune a model as a recipe says."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ftengine.cli.failure import report_errors, state_of
from ftengine.cli.figures import show_figures, show_probes, show_slices, show_verdict
from ftengine.cli.options import json_option, recipe_argument, set_option
from ftengine.cli.page import facts, page, print_json
from ftengine.errors import InputError
from ftengine.run.progress import is_main_process, listening
from ftengine.text import NOTHING, cut_middle, duration, one_line, percent, size, speed

REPORT = "report.html"
"""The report that every finished run has."""
SEVERAL = "seeds"
"""The command that trains several seeds."""
MOST_ANSWERS = 3
"""Prompts whose answers are printed; the report has all."""
LONGEST_ANSWER = 100
"""Characters of a text that are printed."""

if TYPE_CHECKING:
    from rich.console import Console

    from ftengine.engine.fine_tune import Run
    from ftengine.run.evaluation_result import Answered
    from ftengine.run.recipe import Recipe
    from ftengine.run.records import RunRecords


@click.command()
@recipe_argument
@set_option
@click.option("--resume", is_flag=True, help="Continue an unfinished run in the recipe's output folder.")
@json_option
def train(recipe_file: str, overrides: tuple[str, ...], resume: bool, as_json: bool) -> None:
    """Fine-tune a model as a recipe says, and compare the tuned model with its base.

    \b
    Examples:
      ftengine train recipe.yaml --set train.epochs=1 --set output=runs/short
      ftengine train recipe.yaml --resume
    """
    from ftengine.run.parent import end_with_parent
    from ftengine.run.recipe import Recipe
    from ftengine.run.records import RunRecords

    began = time.monotonic()
    end_with_parent()
    recipe = Recipe.read(recipe_file, overrides)
    if recipe.train.seeds > 1:
        if not resume:
            _require_new(recipe)
        _train_several(recipe_file, overrides, as_json)
        return
    sets = [part for override in overrides for part in ("--set", override)]
    again = shlex.join(["ftengine", "train", recipe_file, *sets])
    with listening() as listener:
        listener.message(
            f"{recipe.strategy['name']} on {recipe.model.source}, task {recipe.task['name']}, "
            f"data {recipe.data.train_name}, output {recipe.output}"
        )
        with report_errors(listener, lambda: state_of(recipe.output, again)):
            from ftengine.engine.fine_tune import (
                fine_tune,
            )  # the imports take seconds; the first line is printed before

            run = fine_tune(recipe, resume=resume, listener=listener)
    if not is_main_process():
        return
    records = RunRecords.read(run.path)
    if as_json:
        print_json(_result(run, records))
    else:
        _show(run, records, time.monotonic() - began)


def _require_new(recipe: Recipe) -> None:
    """Refuse folders of seeds that hold something, unfinished runs first (RunError), as one run's folder is refused."""
    from ftengine.engine.fine_tune import restarted
    from ftengine.run.directory import RunDirectory

    runs = sorted((RunDirectory(each.output) for each in recipe.seeded()), key=lambda run: run.finished)
    for run in runs:
        if not (run.is_run() and restarted(run)):
            reuse = ", or use it again with --resume" if run.finished else ""
            run.require_free(f"another with --set output=DIR{reuse}")


def _train_several(recipe_file: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train the seeds of a recipe, or go on with them, by the command for several (InputError: it is not installed)."""
    context = click.get_current_context()
    commands = context.find_root().command
    command = commands.get_command(context, SEVERAL) if isinstance(commands, click.Group) else None
    if command is None:
        raise InputError(f"train.seeds needs the command {SEVERAL!r}, which is missing or blocked. Set it to 1.")
    context.invoke(command, recipe_file=recipe_file, overrides=overrides, as_json=as_json)


def _result(run: Run, records: RunRecords) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "trained": str(run.trained),
        "training": records.training.to_json(),
        "evaluation": records.evaluation.to_json(),
        "answers": [answer.model_dump() for answer in _answers(records)],
        "verdict": run.verdict.to_json(),
        "report": str(run.path / REPORT),
    }


def _show(run: Run, records: RunRecords, seconds: float) -> None:
    out = page()
    show_figures(out, records.evaluation, all_metrics=False)
    for show in (show_slices, show_probes):
        show(out, records.evaluation)
    show_answers(out, _answers(records))
    out.print()
    show_verdict(out, run.verdict)
    out.print("", facts(_lines(run, records, seconds)))
    path = shlex.quote(str(run.path))
    out.print("\nnext:")
    for command in (
        f"ftengine evaluate {path} --data FILE",
        f"ftengine predict {path} --input FILE --output FILE",
        *([f"ftengine merge {path} OUT"] if run.mergeable else []),
        *([f"ftengine chat {path}"] if _answers(records) and run.task.modality != "audio" else []),
        *([f"ftengine export {path} --to FORMAT OUT"] if _answers(records) else []),
        *run.view_commands,
    ):
        out.print(f"  {command}", soft_wrap=True)
    out.print(f"\nreport: {run.path / REPORT}", soft_wrap=True)


def _answers(records: RunRecords) -> Sequence[Answered]:
    return () if records.examples is None else records.examples.answers


def show_answers(out: Console, answers: Sequence[Answered]) -> None:
    """Print both models' answers to the first prompts, a line each."""
    lead = f"\nanswers to held-out prompts (the report has all {len(answers)}):"
    for i, answer in enumerate(answers[:MOST_ANSWERS]):
        texts = [
            ("prompt", answer.prompt),
            ("reference", answer.wanted),
            ("base", answer.base),
            ("tuned", answer.tuned),
        ]
        shown = [(name, cut_middle(one_line(text), LONGEST_ANSWER)) for name, text in texts if text is not None]
        out.print("" if i else lead, facts((f"  {name}", text or NOTHING) for name, text in shown))


def _lines(run: Run, records: RunRecords, seconds: float) -> list[tuple[str, str | None]]:
    from ftengine.model import is_pretrained

    training = records.training
    trained, total = training.trainable_parameters, training.total_parameters
    steps = f"{training.steps:,} of {training.planned_steps:,} steps"
    if training.stopped_early:
        steps += ", stopped early because the validation loss no longer fell"
    best, validations = training.best_step, len(records.validations)
    best_weights = (
        f"the weights of step {best:,}, which have the lowest validation loss" if best and validations > 1 else None
    )
    return [
        ("training", f"{duration(training.seconds)}, {steps}"),
        ("this command", duration(seconds)),
        ("speed", speed(training.examples_per_second, training.tokens_per_second) or None),
        ("kernels", training.kernels or None),
        ("kept", best_weights),
        ("parameters", f"{trained:,} of {total:,} trained ({percent(trained / total)})"),
        ("peak memory", size(training.peak_memory_bytes)),
        ("tuned model" if trained == total or is_pretrained(run.trained) else "trained part", str(run.trained)),
    ]
