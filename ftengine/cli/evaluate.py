"""`ftengine evaluate`: compare a tuned model with its base."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ftengine.cli.figures import show_figures, show_matrices, show_probes, show_slices, show_verdict
from ftengine.cli.options import PATH, json_option, require_one_process, run_argument, trust_code_option
from ftengine.cli.page import facts, page, print_json
from ftengine.run.progress import announce, is_main_process, listening

if TYPE_CHECKING:
    from ftengine.engine.own_answers import OwnAnswers


@click.command()
@run_argument
@click.option("--data", metavar="FILE", type=PATH, help="Evaluate on these examples, not the run's held-out split.")
@click.option(
    "--evaluators",
    metavar="LIST",
    help="Add figures of these evaluators (names, separated by commas), computed from the predictions in the run, and "
    "renew its verdict.",
)
@click.option(
    "--own-answers",
    type=click.IntRange(2, 1000),
    metavar="N",
    help="Instead, let the tuned model draw answers to N rows, and estimate from them its KL divergence from the "
    "model that training began with.",
)
@trust_code_option
@json_option
def evaluate(
    run_folder: str, data: str | None, evaluators: str | None, own_answers: int | None, trust_code: bool, as_json: bool
) -> None:
    """Compare a tuned model with its base on the same examples.

    \b
    Examples:
      ftengine evaluate runs/support --data new.jsonl
      ftengine evaluate runs/reviews --evaluators calibration
      ftengine evaluate runs/support --own-answers 64
    """
    announce(f"opening {run_folder}")
    from ftengine.engine.fine_tune import load_run
    from ftengine.errors import InputError
    from ftengine.run.evaluation_result import EvaluationResult

    named = [name.strip() for name in (evaluators or "").split(",") if name.strip()]
    if own_answers is not None:
        require_one_process("evaluate --own-answers", "answers one prompt after the other")
        if named:
            raise InputError(
                "--own-answers draws new answers, and --evaluators reads those in the run. Leave one of them out."
            )
    with listening() as listener:
        run = load_run(run_folder, listener=listener, trust_code=trust_code)
        if own_answers is not None:
            from ftengine.engine.own_answers import own_answers as drawn

            estimate = drawn(run, rows=own_answers, data=data)
        else:
            figures = run.evaluate(data, evaluators=named)
    if own_answers is not None:
        _show_own_answers(estimate, as_json)
        return
    if not is_main_process():
        return
    if as_json:
        print_json(figures)
    else:
        out, result = page(), EvaluationResult.model_validate(figures)
        for show in (show_figures, show_matrices, show_slices, show_probes):
            show(out, result)
        if named:
            out.print()
            show_verdict(out, run.verdict)


def _show_own_answers(estimate: OwnAnswers, as_json: bool) -> None:
    """Print the KL divergence, estimated on the tuned model's own answers."""
    from ftengine.text import counted, with_interval

    if as_json:
        print_json(estimate.to_json())
        return
    began = f"the base with {estimate.started_from}" if estimate.started_from else "the base"
    cut = f", {estimate.cut:,} cut at {counted(estimate.longest, 'token')}" if estimate.cut else ""
    lines = [
        ("KL divergence", f"from {began}, on the tuned model's own answers"),
        ("nats an answer", with_interval(estimate.kl)),
        ("nats a token", with_interval(estimate.kl_per_token)),
        ("mean log-ratio", f"{with_interval(estimate.log_ratio)} an answer, the plain estimate"),
        (
            "answers",
            f"{estimate.prompts:,} to prompts of {estimate.split}, {counted(estimate.tokens, 'token')}{cut}",
        ),
    ]
    page().print(facts(lines))
