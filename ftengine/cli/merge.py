"""`ftengine merge`: save a plain model that needs no ftengine."""

from __future__ import annotations

import click

from ftengine.cli.options import PATH, json_option, require_one_process, run_argument, trust_code_option
from ftengine.cli.page import facts, page, print_json
from ftengine.run.progress import announce, listening
from ftengine.text import number


@click.command()
@run_argument
@click.argument("out", metavar="OUT", type=PATH)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Dtype of the merged weights; auto keeps the base model's.",
)
@trust_code_option
@json_option
def merge(run_folder: str, out: str, dtype: str, trust_code: bool, as_json: bool) -> None:
    """Merge the trained part into the base and save a plain model in the new folder OUT.

    Outputs are compared twice: before and after merging, and before and after saving, with the model loaded from OUT.
    If they differ by more than rounding, OUT is removed.

    \b
    Example:
      ftengine merge runs/support merged-model --dtype bfloat16
    """
    announce(f"opening {run_folder}")
    from ftengine.engine.fine_tune import load_run

    require_one_process("merge", "writes one model")
    with listening() as listener:
        report = load_run(run_folder, listener=listener, trust_code=trust_code).merge(out, dtype)
    if as_json:
        print_json(report.to_json())
        return
    check = f"passed: difference {number(report.difference)}, limit {number(report.tolerance)}"
    page().print(facts([("merged into", report.path), ("dtype", report.dtype), ("check", check)]))
