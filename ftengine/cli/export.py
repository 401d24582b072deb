"""`ftengine export`: write files that another program serves, and prove that they hold the measured model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ftengine.cli.options import PATH, json_option, require_one_process, run_argument, trust_code_option
from ftengine.cli.page import facts, page, print_json
from ftengine.run.progress import announce, listening

if TYPE_CHECKING:
    from ftengine.run.export import Manifest

DECISIONS = {
    "tuned": "within rounding of the tuned model, and nearer to it than to its base",
    "undecided": "within rounding of the tuned model, but these rows do not distinguish tuned from base beyond chance",
}
"""A proof's decision in words."""
CANNOT_TELL = 5
"""Exit status if the other program failed during the proof; the same as that of an undecided `verify`."""


@click.command()
@run_argument
@click.option("--to", "to", metavar="FORMAT", required=True, help="Format; `ftengine plugins list --kind exporter`.")
@click.argument("out", metavar="OUT", type=PATH)
@click.option("--dtype", metavar="DTYPE", help="Dtype of the weights, as the format calls it: --option dtype=DTYPE.")
@click.option(
    "--option",
    "options",
    metavar="KEY=VALUE",
    multiple=True,
    help="An option of the format, as key=value; may be given several times.",
)
@click.option(
    "--rows", type=click.IntRange(min=2), metavar="N", default=32, show_default=True, help="Number of rows to compare."
)
@click.option("--data", metavar="FILE", type=PATH, help="File of rows to ask. Default: the run's held-out rows.")
@click.option("--no-verify", "verify", flag_value=False, default=True, help="Skip the proof; the export records that.")
@click.option("--push", metavar="NAME", help="Upload the proven folder to the Hugging Face hub, as owner/model.")
@trust_code_option
@json_option
def export(
    run_folder: str,
    to: str,
    out: str,
    dtype: str | None,
    options: tuple[str, ...],
    rows: int,
    data: str | None,
    verify: bool,
    push: str | None,
    trust_code: bool,
    as_json: bool,
) -> None:
    """Write a tuned model in another program's format, and prove it.

    If the other program is installed, it answers held-out rows, and its prompt tokens, log-probabilities of the tuned
    model's answers and greedy answers are compared with the tuned model's. If they differ, the new folder OUT is
    removed.
    Exit status 5: that program timed out or failed, so there is no proof; OUT is kept.

    \b
    Examples:
      ftengine export runs/support --to transformers served
      ftengine export runs/support --to gguf served-gguf --dtype Q8_0
    """
    announce(f"opening {run_folder}")
    from ftengine.engine.export import export_run
    from ftengine.engine.fine_tune import load_run
    from ftengine.engine.push import push as upload
    from ftengine.engine.push import require_access
    from ftengine.errors import InputError
    from ftengine.run.yaml_text import key_and_value

    require_one_process("export", "writes one model")
    chosen = dict(key_and_value(option, "--option", "dtype=F16") for option in options)
    if dtype is not None:
        chosen["dtype"] = dtype
    if push:
        require_access(push)
    with listening() as listener:
        run = load_run(run_folder, listener=listener, trust_code=trust_code)
        exporter = run.registry.build("exporter", {"name": to, **chosen}, "--to")
        made = export_run(run, exporter, out, verify=verify, rows=rows, data=data)
        if push and made.proof is None and verify:
            raise InputError(
                f"{out!r} is written but not pushed, as there is no proof: {made.unproven} To push it without one, "
                "name another folder and add --no-verify."
            )
        address = upload(out, push, [run.recipe.model.source, made.base, run.path]) if push else None
    if as_json:
        print_json(made.to_json() | ({"pushed": address} if address else {}))
    else:
        pushed = [("pushed to", address)] if address else []
        page().print(facts([("exported to", out), ("format", to), *_shown(made), *pushed]))
    if made.cannot_tell:
        raise click.exceptions.Exit(CANNOT_TELL)


def _shown(made: Manifest) -> list[tuple[str, str]]:
    from ftengine.text import number

    if (proof := made.proof) is None:
        return [("proof", f"{'cannot tell' if made.cannot_tell else 'none'}: {made.unproven}")]
    from_tuned = f"{number(proof.from_tuned)} (rounding explains {number(proof.noise)})"
    what = "by size, of outputs" if proof.same_answers is None else "of a token's log-probability"
    lines = [
        ("proof", f"{DECISIONS[proof.decision]}, by {proof.runtime} on {proof.questions} rows of {proof.split}"),
        ("distance", f"{what}: from the tuned model {from_tuned}, from the base {number(proof.from_base)}"),
    ]
    if proof.same_answers is not None:
        lines.append(("answers", f"{proof.same_answers} of {proof.questions} the same"))
    if proof.needed is not None:
        lines.append(("rows needed", f"about {proof.needed:,} (--rows) to distinguish it from the base beyond chance"))
    return lines
