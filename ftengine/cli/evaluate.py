"""`ftengine evaluate`: tuned against base."""

from __future__ import annotations

import click

from ftengine.cli.figures import show_figures, show_matrices, show_probes, show_slices, show_verdict
from ftengine.cli.options import PATH, json_option, run_argument, trust_code_option
from ftengine.cli.page import page, print_json
from ftengine.cli.progress import announce, is_main_process, listening


@click.command()
@run_argument
@click.option("--data", metavar="FILE", type=PATH, help="Evaluate on these examples, not the run's held-out split.")
@click.option(
    "--evaluators",
    metavar="LIST",
    help="Add figures of these evaluators (names, separated by commas) from the predictions that the run kept, and "
    "judge the run again.",
)
@trust_code_option
@json_option
def evaluate(run_folder: str, data: str | None, evaluators: str | None, trust_code: bool, as_json: bool) -> None:
    """Compare a tuned model with its base on the same examples.

    \b
    Examples:
      ftengine evaluate runs/support --data new.jsonl
      ftengine evaluate runs/reviews --evaluators calibration
    """
    announce(f"opening {run_folder}")
    from ftengine.engine.fine_tune import load_run
    from ftengine.run.evaluation_result import EvaluationResult

    named = [name.strip() for name in (evaluators or "").split(",") if name.strip()]
    with listening() as listener:
        run = load_run(run_folder, listener=listener, trust_code=trust_code)
        figures = run.evaluate(data, evaluators=named)
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
