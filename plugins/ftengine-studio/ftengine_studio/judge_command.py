"""`ftengine judge`: a language model compares the answers of base and tuned model."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from ftengine.chat import endpoint_options

if TYPE_CHECKING:
    from ftengine_studio.judge_run import Bounds, Judging
    from ftengine_studio.summary import Slices


@click.command()
@click.argument("run_folder", metavar="RUN", type=click.Path())
@click.option(
    "--endpoint",
    required=True,
    metavar="URL",
    help="Address of an OpenAI-compatible API, e.g. http://localhost:8000/v1.",
)
@click.option("--model", required=True, metavar="NAME", help="The judge: the model's name at the endpoint.")
@click.option(
    "--rubric",
    metavar="FILE",
    type=click.Path(),
    help="What the judge is asked, with {prompt}, {first} and {second}. Default: --show-rubric.",
)
@click.option(
    "--show-rubric",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda *given: _show_rubric(*given),
    help="Print the default rubric.",
)
@click.option(
    "--max-requests",
    type=click.IntRange(min=1),
    metavar="N",
    help="Replies to ask for at most. Default: two for each pair.",
)
@click.option("--price-per-1m", metavar="IN[,OUT]", help="Price of a million tokens read, and of a million written.")
@click.option(
    "--max-cost",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Stop before the prices come to more than this.",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=512, show_default=True, metavar="N", help="Longest reply."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides the order of the pairs.")
@endpoint_options(max_time=3600, retries=3)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON to stdout.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks, and other libraries' warnings.")
def judge(
    run_folder: str,
    endpoint: str,
    model: str,
    rubric: str | None,
    max_requests: int | None,
    price_per_1m: str | None,
    max_cost: float | None,
    max_tokens: int,
    seed: int,
    key_variable: str,
    timeout: float,
    max_time: float,
    retries: int,
    as_json: bool,
) -> None:
    """Let a language model compare the answers of base and tuned model.

    Each pair of a run's held-out answers is shown in both orders; a verdict that changes with the order counts as a
    tie. Judgements go to judgements.jsonl and replies to judge_replies.jsonl in the run's folder; its verdict and
    report are renewed. The same command goes on with what is left.

    \b
    Examples:
      ftengine judge runs/support --endpoint http://localhost:8000/v1 --model judge
      ftengine judge runs/support --endpoint https://example.org/v1 --model large --max-requests 100 --json
    """
    from ftengine import RunRecords, listening, load_run
    from ftengine.chat import Endpoint
    from ftengine.errors import InputError
    from ftengine_studio.judge_replies import read_rubric
    from ftengine_studio.judge_run import Bounds, Judge, pairs_to_judge
    from ftengine_studio.rule import slices_of

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("judge asks one endpoint; call it without torchrun.")
    bounds = Bounds(max_requests, max_cost, _prices(price_per_1m, max_cost), max_tokens)
    text = read_rubric(rubric)
    records = RunRecords.read(run_folder)
    pairs = pairs_to_judge(records.path)
    served = Endpoint(endpoint, model, key=key_variable, timeout=timeout, retries=retries, max_time=max_time)
    judge = Judge(records, pairs, served, text, bounds, seed)
    with listening() as listener:
        compared = judge.require_another_model()
        try:
            result = judge.judge(listener)
        finally:
            if judge.result.changed:
                load_run(run_folder).conclude()
    slices = slices_of(records.path, records.evaluation.split)
    _show(run_folder, judge.name, result, bounds, compared, slices, as_json)


def _show_rubric(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from ftengine_studio.judge_replies import RUBRIC

        click.echo(RUBRIC)
        context.exit()


def _prices(text: str | None, max_cost: float | None) -> tuple[float, float] | None:
    """Return the prices of tokens read and written (InputError: they are not numbers, or lack beside --max-cost)."""
    from ftengine.errors import InputError

    if text is None:
        if max_cost is not None:
            raise InputError("--max-cost needs the prices of tokens: give --price-per-1m IN,OUT.")
        return None
    try:
        prices = [float(part) for part in text.split(",")]
    except ValueError:
        prices = []
    if len(prices) not in (1, 2) or not all(0 <= price < float("inf") for price in prices):
        raise InputError(f"--price-per-1m {text!r}: write one price, or two separated by a comma, e.g. 0.5,1.5.")
    return prices[0], prices[-1]


def _show(run: str, name: str, result: Judging, bounds: Bounds, compared: int, slices: Slices, as_json: bool) -> None:
    from dataclasses import asdict

    from ftengine.text import counted
    from ftengine_studio.summary import summaries

    of_base = next(iter(summaries(run, slices)), None)
    spent = asdict(result.spent)
    if bounds.prices is not None:
        spent["cost"] = result.spent.cost(bounds.prices)
    if as_json:
        content = {
            "run": run,
            "judge": name,
            "pairs": result.pairs,
            "left": result.left,
            "identical": result.identical,
            "reused": result.reused,
            "garbage": result.garbage,
            "failed": result.failed,
            "failure": result.failure,
            "stopped": result.stopped,
            "compared_with_run": compared,
            "spent": spent,
            "figures": None if of_base is None else of_base.to_json()["models"].get(name),
            "people": None if of_base is None else of_base.to_json()["people"],
        }
        click.echo(json.dumps(content, indent=2, allow_nan=False))
        return
    for finding in _findings(run, name):
        click.echo(f"{finding}\n")
    about = "about " * result.spent.estimated
    cost = f", {spent['cost']:.4g} by --price-per-1m" if "cost" in spent else ""
    click.echo(
        f"{counted(result.spent.requests, 'request')}, {about}{result.spent.prompt_tokens:,} tokens read and "
        f"{result.spent.tokens:,} written{cost}; {result.reused:,} replies of earlier calls"
    )
    if result.garbage:
        click.echo(
            f"{counted(result.garbage, 'reply', 'replies')} without a verdict, or with several: see judge_replies.jsonl"
        )
    if result.failed:
        click.echo(f"{counted(result.failed, 'request')} without a reply, the last one: {result.failure}")
    if result.left:
        why = f" ({result.stopped})" if result.stopped else ""
        click.echo(f"{counted(result.left, 'pair')} not judged{why}; the same command goes on")
    if not compared and result.spent.requests and not result.stopped:
        click.echo(
            "whether the judge is the run's own base or tuned model was checked by its name alone: too few answers are "
            "long and differ, or too few replies came"
        )


def _findings(run: str, name: str) -> list[str]:
    """Return what the verdict says of a model's judgements."""
    from ftengine import load_run
    from ftengine_studio.rule import Preferences

    texts = [one.text for one in load_run(run).verdict.findings if one.source == Preferences.name]
    return [text for text in texts if repr(name) in text]
