"""`ftengine verify`: find out which model an endpoint serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ftengine.chat import endpoint_options
from ftengine.cli.options import PATH, json_option, require_one_process, run_argument, trust_code_option
from ftengine.cli.page import facts, page, print_json
from ftengine.run.progress import announce, listening

if TYPE_CHECKING:
    from ftengine.engine.verify import Verified

STATUS = {"tuned": 0, "base": 3, "other": 4, "undecided": 5}
"""Exit status; 1 and 2 are those of every command."""

SERVED = {
    "tuned": "the tuned model",
    "base": "the base model",
    "other": "something else",
    "undecided": "cannot tell",
}
ALIKE = "the answers of the tuned model and its base to these rows are too similar"


@click.command()
@run_argument
@click.option("--url", required=True, help="URL of an OpenAI-compatible API, e.g. http://localhost:8000/v1.")
@click.option("--model", default="", metavar="NAME", help="The model's name at the endpoint. Default: its only model.")
@click.option(
    "--rows", type=click.IntRange(2, 1000), metavar="N", default=32, show_default=True, help="Number of rows to ask."
)
@click.option(
    "--weights",
    default="",
    metavar="TYPE",
    help="Type of the served weights, e.g. f16, q8_0, q4_0. Default: from the model's name, else 8 bits.",
)
@click.option("--data", metavar="FILE", type=PATH, help="File of rows to ask. Default: the run's held-out rows.")
@endpoint_options(max_time=1800, retries=2)
@trust_code_option
@json_option
def verify(
    run_folder: str,
    url: str,
    model: str,
    rows: int,
    weights: str,
    data: str | None,
    key_variable: str,
    timeout: float,
    max_time: float,
    retries: int,
    trust_code: bool,
    as_json: bool,
) -> None:
    """Say which model an endpoint serves: the tuned one or its base.

    The endpoint answers the run's held-out rows. "Something else" may be another template or other weights.
    Exit status: 0 the tuned model, 3 the base, 4 something else, 5 undecided.

    \b
    Example:
      ftengine verify runs/support --url http://localhost:8000/v1
    """
    announce(f"opening {run_folder}")
    from ftengine.chat.endpoint import Endpoint
    from ftengine.engine.fine_tune import load_run
    from ftengine.engine.verify import verify_run
    from ftengine.text import number

    require_one_process("verify", "asks one endpoint")
    with listening() as listener:
        run = load_run(run_folder, listener=listener, trust_code=trust_code)
        endpoint = Endpoint(url, model, key=key_variable, timeout=timeout, retries=retries, max_time=max_time)
        result = verify_run(run, endpoint, rows=rows, data=data, weights=weights.lower())
    if as_json:
        print_json(result.to_json())
    else:
        lines = [
            ("serves", _served(result)),
            *([("likely cause", result.cause)] if result.cause and result.served == "other" else []),
            (
                "answers",
                f"{result.same_as_tuned} of {result.rows} as the tuned model, {result.same_as_base} as the base",
            ),
            (
                "its tokens",
                f"{number(result.behind_tuned)} below the likeliest ones (mean log-probability) for the tuned model, "
                f"{number(result.behind_base)} for the base",
            ),
            ("log-probabilities", _distances(result)),
            ("weights", _weights(result)),
            *([("rows needed", f"{result.needed:,}")] if result.needed is not None else []),
        ]
        page().print(facts(lines))
    raise click.exceptions.Exit(STATUS[result.served])


def _served(result: Verified) -> str:
    """Return what is served, and what remains uncertain."""
    if result.served == "undecided":
        return f"{SERVED['undecided']}: {result.cause or ALIKE}"
    if result.served == "tuned" and result.from_tuned is None:
        return (
            f"{SERVED['tuned']}, judged only by its answers: a loss of precision that does not change them is possible"
        )
    return SERVED[result.served]


def _weights(result: Verified) -> str:
    from ftengine.text import number

    claimed = {"option": "by --weights", "name": "by the model's name", "": "not named, so assumed"}
    return f"{result.weights} ({claimed[result.claimed_by]}), which explain {number(result.noise)}"


def _distances(result: Verified) -> str:
    from ftengine.text import number

    if result.from_tuned is None or result.from_base is None:
        return "not reported by the endpoint, so its quantisation is unknown"
    return f"{number(result.from_tuned)} from the tuned model's, {number(result.from_base)} from the base's"
