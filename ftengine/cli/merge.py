"""`ftengine merge`: a plain model, with nothing of ftengine in it."""

from __future__ import annotations

import click

from ftengine.cli.options import PATH, json_option, require_one_process, run_argument, trust_code_option
from ftengine.cli.page import facts, page, print_json
from ftengine.run.progress import announce, listening


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

    Outputs are compared twice: before and after merging, and the merged model's with those of the written folder,
    opened anew from its files. Where they differ by more than rounding, OUT is not left behind.

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
    check = f"passed: difference {report.difference:.1g}, limit {report.tolerance:.1g}"
    page().print(facts([("merged into", report.path), ("dtype", report.dtype), ("check", check)]))
