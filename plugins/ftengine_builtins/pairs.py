"""`ftengine pairs`: training rows of answers that a function scored, for one round of rejection sampling."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ftengine import Answering
    from ftengine.api import Example
    from ftengine_builtins.evaluators import Verifier

SCORES = ".scores.jsonl"
"""What the output's name has behind it where the scores stand."""


@click.command()
@click.argument("model", metavar="RUN|RECIPE|MODEL", type=click.Path(readable=False))
@click.option(
    "--input",
    "source",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="Answers, as `ftengine predict … --samples N --output FILE.jsonl` writes them.",
)
@click.option(
    "--output", metavar="FILE", required=True, type=click.Path(path_type=Path), help="The rows to train on, .jsonl."
)
@click.option(
    "--to",
    "kind",
    type=click.Choice(("sft", "preference")),
    default="sft",
    show_default=True,
    help="sft: each prompt with its best answer; preference: with an answer that passes and one that does not.",
)
@click.option("--each", type=click.IntRange(min=1), default=1, show_default=True, help="Most rows for a prompt.")
@click.option("--function", metavar="FILE.py:NAME", help="Function that scores answers. Default: the recipe's.")
@click.option("--evaluator", metavar="NAME", help="The evaluator to score with, if the recipe names several.")
@click.option(
    "--option",
    "options",
    metavar="KEY=VALUE",
    multiple=True,
    help="An option of the evaluator, e.g. passes_at=0.5; may be given several times.",
)
@click.option("--resume", is_flag=True, help="Keep the scores of an interrupted output and continue after them.")
@click.option("--trust-code", is_flag=True, help="Run the scoring function of the run's recipe; review it first.")
@click.option("--json", "as_json", is_flag=True, help="Print only JSON to stdout.")
def pairs(
    model: str,
    source: Path,
    output: Path,
    kind: str,
    each: int,
    function: str | None,
    evaluator: str | None,
    options: tuple[str, ...],
    resume: bool,
    trust_code: bool,
    as_json: bool,
) -> None:
    """Make training rows of sampled answers that a function scores.

    The model that answered is named as for `ftengine predict`: a run, a recipe, or a base model.

    \b
    Example:
      ftengine predict runs/sums --input sums.jsonl --output answers.jsonl --samples 8
      ftengine pairs runs/sums --input answers.jsonl --output round1.jsonl --function score.py:right
    """
    from ftengine import load_model
    from ftengine.errors import InputError
    from ftengine.text import counted, percent

    if output.suffix != ".jsonl":
        raise InputError(f"--output {str(output)!r}: rows are written as .jsonl. Name the file so.")
    run = load_model(model, trust_code=trust_code)
    chosen = options_of(options) | ({} if function is None else {"function": function})
    judge = judge_of(run, evaluator, chosen)
    report = write_pairs(run, judge, source, output, kind=kind, each=each, resume=resume)
    if as_json:
        click.echo(json.dumps(asdict(report), ensure_ascii=False, indent=2))
        return
    click.echo(f"wrote {counted(report.rows, 'row')} to {output}")
    none, every = counted(report.none_passes, "has", "have"), counted(report.all_pass, "has", "have")
    click.echo(
        f"{report.passed:,} of {counted(report.answers, 'answer')} to {counted(report.prompts, 'prompt')} pass "
        f"({percent(report.passed / report.answers)}); {none} no answer that passes, {every} no other"
    )
    if report.errors or report.timeouts:
        why = f" ({report.error})" if report.error else ""
        click.echo(
            f"the function failed at {report.errors:,} answers{why} and took longer than "
            f"{report.timeout:g} s for {report.timeouts:,}"
        )
    if report.cut:
        click.echo(
            f"{counted(report.cut, 'answer')} ended at max_new_tokens, not by themselves, and make no rows; a higher "
            "one leaves fewer"
        )
    if report.unsteady:
        click.echo(f"the function judged equal answers to {counted(report.unsteady, 'prompt')} differently")


def options_of(given: Sequence[str]) -> dict[str, Any]:
    """Return the evaluator's options (UsageError: one is not of the form KEY=VALUE)."""
    import yaml

    options: dict[str, Any] = {}
    for option in given:
        key, equals, value = option.partition("=")
        if not equals:
            raise click.UsageError(f"--option {option!r}: write KEY=VALUE, for example passes_at=0.5.")
        options[key] = yaml.safe_load(value)
    return options


@dataclass(frozen=True)
class Report:
    """The result of a round.

    Args:
        rows: number of written rows; of `prompts`, `none_passes` have no passing answer, and `all_pass` only passing
            ones.
        answers: number of answers, of which `passed` passed. The function raised for `errors` of them (`error` is one
            message), and exceeded `timeout` seconds for `timeouts`.
        cut: number of answers that were cut off at max_new_tokens, which make no row.
        unsteady: number of prompts for which equal answers got different scores.
    """

    rows: int
    prompts: int
    answers: int
    passed: int
    none_passes: int
    all_pass: int
    errors: int
    timeouts: int
    cut: int
    unsteady: int
    error: str
    timeout: float


def judge_of(run: Answering, name: str | None, options: Mapping[str, Any]) -> Verifier:
    """Return the evaluator that scores answers: the recipe's with further options, or one made of a function.

    Raises:
        InputError: there is no function, there are several, or it is not trusted.
    """
    from ftengine.errors import InputError
    from ftengine_builtins.evaluators import Verifier

    own = {spec["name"]: spec for spec in run.recipe.evaluate}
    names = [*own] if name is None else [name]
    names = [candidate for candidate in names if issubclass(run.registry.get("evaluator", candidate).cls, Verifier)]
    if not names and name is None and "function" in options:
        names = [Verifier.name]
    if len(names) != 1:
        which = (
            f"evaluators {', '.join(names)} score"
            if names
            else f"{name or 'no evaluator of its recipe'} does not score"
        )
        raise InputError(
            f"{str(run.path)!r}: {which} answers by a function. Name one with --evaluator, or a function with "
            "--function FILE.py:NAME."
        )
    judge: Verifier = run.registry.build(
        "evaluator", {"name": names[0], **own.get(names[0], {}), **options}, "--option"
    )
    if "function" not in options:
        run.require_trust(judge.runs_code(), "scores answers by")
    judge.set_labels(run.recipe.task["name"], None)
    return judge


def write_pairs(
    run: Answering,
    judge: Verifier,
    source: Path,
    output: Path,
    *,
    kind: str = "sft",
    each: int = 1,
    resume: bool = False,
) -> Report:
    """Score sampled answers and write training rows made of them, atomically.

    Scores are written to a file beside the output as they are computed, so an interrupted round can continue.

    Raises:
        InputError: `source` holds no sampled answers, the function cannot be called, or no row can be made.
        RunError: `output` exists, or an interrupted round with other settings left a file.
    """
    from ftengine.errors import InputError, RefusedRows, RunError

    if output.exists():
        raise RunError(f"output {str(output)!r} exists. Name another file.")
    rows = list(read_samples(source, run.recipe.data.columns))
    refused = RefusedRows()
    for number, (row, _) in enumerate(rows, 1):
        try:
            judge.check_row(row)
            with_answer(row, {"completion": "x"})
        except InputError as error:
            refused.add(f"{source.name}:{number}", f"{source.name}:{number}: {error}")
    if refused.count:
        raise refused.error()
    judge.start()
    scored = list(scores_of(judge, rows, source, output.with_name(output.name + SCORES), resume=resume))
    made = [
        one
        for (row, answers), result in zip(rows, scored, strict=True)
        for one in rows_of(row, answers, result["scores"], result["outcomes"], kind, each)
    ]
    report = reported(len(made), [answers for _, answers in rows], scored, judge.config.timeout)
    if not made:
        why = f" The function failed at {report.errors:,} of them: {report.error}." if report.errors else ""
        if report.timeouts:
            why += f" It took longer than its timeout of {report.timeout:g} s for {report.timeouts:,}: raise --option "
            why += "timeout=SECONDS, or make it faster."
        judged = report.answers - report.errors - report.timeouts
        why += f" {report.cut:,} were cut off at max_new_tokens: raise it." if report.cut and judged else ""
        raise InputError(
            f"{source.name}: {report.passed:,} of {report.answers:,} answers pass, but they make no {kind} row."
            f"{why}{' Draw more answers, or take easier prompts.' if judged else ''}"
        )
    unfinished = output.with_name(f"{output.name}.unfinished")
    unfinished.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in made), encoding="utf-8")
    os.replace(unfinished, output)
    return report


def reported(
    rows: int, answers: Sequence[Sequence[Mapping[str, Any]]], scored: Sequence[Mapping[str, Any]], timeout: float
) -> Report:
    """Count the outcomes of the answers to each prompt."""
    unsteady, outcomes = 0, [one["outcomes"] for one in scored]
    for answer, own in zip(answers, outcomes, strict=True):
        judged = {(one["completion"], outcome == 1) for one, outcome in zip(answer, own, strict=True)}
        unsteady += len(judged) > len({text for text, _ in judged})
    counts = [sum(own.count(outcome) for own in outcomes) for outcome in range(4)]
    return Report(
        rows,
        len(scored),
        sum(counts),
        counts[1],
        sum(1 not in one for one in outcomes),
        sum(set(one) == {1} for one in outcomes),
        *counts[2:],
        sum(cut(one) for some in answers for one in some),
        unsteady,
        next((one["error"] for one in scored if one.get("error")), ""),
        timeout,
    )


def read_samples(source: Path, columns: Mapping[str, str]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield each row, with the task's column names, and its answers (InputError: it has none)."""
    from ftengine.data import text_lines
    from ftengine.errors import DataError, InputError

    if not source.is_file():
        raise InputError(f"--input {str(source)!r}: there is no such file.")
    for number, line, _ in text_lines(source):
        row = None
        with suppress(ValueError):
            row = json.loads(line)
        prediction = row.pop("prediction", None) if isinstance(row, dict) else None
        answers = prediction.get("samples") if isinstance(prediction, dict) else None
        if not answers or not all(isinstance(one, dict) and isinstance(one.get("completion"), str) for one in answers):
            raise DataError(
                f"{source.name}:{number} holds no sampled answers. Make them: ftengine predict RUN --samples 8 "
                "--input FILE --output ANSWERS.jsonl"
            )
        kept = {name: value for name, value in row.items() if name not in columns.values()}
        yield {**kept, **{ours: row.get(theirs) for ours, theirs in columns.items()}}, answers


def scores_of(
    judge: Verifier, rows: Sequence[tuple[Example, list[dict[str, Any]]]], source: Path, file: Path, *, resume: bool
) -> Iterator[dict[str, Any]]:
    """Yield {"scores", "outcomes"} of each row, with "error" if the function raised; they are also written to a file.

    The first line of the file identifies everything that the scores depend on (RunError: it differs).
    """
    from ftengine.errors import RunError
    from ftengine.identity import file_hash
    from ftengine_builtins.tasks.prompt_rows import own_answer

    files = sorted(judge.code_files())
    code = [[file.name, file_hash(file)] for file in files]
    answers = file_hash(source)
    made = {"answers": answers, "code": code, "options": judge.config.model_dump(mode="json")}
    kept: list[dict[str, Any]] = []
    if file.exists():
        if not resume:
            raise RunError(f"{str(file)!r} exists. Name another output, or continue it with --resume.")
        lines = file.read_bytes().split(b"\n")[:-1]  # a kill may have left half a line behind them
        kept = [json.loads(line) for line in lines]
        if kept and kept[0] != made:
            raise RunError(f"{str(file)!r} was begun with other answers, another function or other options.")
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w" if not kept else "r+", encoding="utf-8") as out:
        if kept:
            out.truncate(sum(len(line) + 1 for line in lines))
            out.seek(0, os.SEEK_END)
        else:
            out.write(json.dumps(made) + "\n")
        yield from kept[1:]
        for row, answers_of in rows[len(kept[1:]) :]:
            texts = [answer["completion"] for answer in answers_of]
            scores, outcomes = judge.score_answers(texts, {**row, **own_answer(row)})
            line = {"scores": [None if score != score else score for score in scores], "outcomes": outcomes}
            if 2 in outcomes:
                line["error"] = judge.first_error
            out.write(json.dumps(line) + "\n")
            out.flush()
            yield line


def rows_of(
    row: Example,
    answers: Sequence[Mapping[str, Any]],
    scores: Sequence[float | None],
    outcomes: Sequence[int],
    kind: str,
    each: int,
) -> list[dict[str, Any]]:
    """Return training rows made of the answers to a prompt, best answers first, equally good ones in drawn order.

    Equal answers count once. Empty answers and answers that were cut off make no row; after the latter the model would
    learn to stop in the middle.
    """
    whole = [(k, drawn) for k, drawn in enumerate(answers) if drawn["completion"].strip() and not cut(drawn)]
    first = {drawn["completion"]: k for k, drawn in reversed(whole)}
    order = sorted(first.values(), key=lambda k: (-(scores[k] or 0.0), k))
    good = [answers[k] for k in order if outcomes[k] == 1][:each]
    if kind == "sft":
        return [with_answer(row, answer) for answer in good]
    bad = [answers[k] for k in sorted(order, key=lambda k: (scores[k] or 0.0, k)) if outcomes[k] == 0][:each]
    return [with_answers(row, chosen, rejected) for chosen, rejected in zip(good, bad, strict=False)]


def cut(answer: Mapping[str, Any]) -> bool:
    """Return whether an answer was cut off at max_new_tokens."""
    return answer.get("ended") is False


def with_answer(row: Example, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its own answer replaced (DataError: it has no prompt)."""
    kept, prompt = asked(row)
    if isinstance(prompt, str) and not answer.get("thought"):
        return {**kept, "prompt": prompt, "completion": answer["completion"]}
    if "messages" in row:
        return {**kept, "messages": [*prompt, message(answer)]}
    return {**kept, "prompt": turns(prompt), "completion": [message(answer)]}


def with_answers(row: Example, chosen: Mapping[str, Any], rejected: Mapping[str, Any]) -> dict[str, Any]:
    """Return {prompt, chosen, rejected}, with the row's other columns."""
    kept, prompt = asked(row)
    if isinstance(prompt, str) and not (chosen.get("thought") or rejected.get("thought")):
        return {**kept, "prompt": prompt, "chosen": chosen["completion"], "rejected": rejected["completion"]}
    return {**kept, "prompt": turns(prompt), "chosen": [message(chosen)], "rejected": [message(rejected)]}


def asked(row: Example) -> tuple[dict[str, Any], str | list[Any]]:
    """Return a row's other columns, and its prompt: a text, or the messages without the assistant's last turn."""
    from ftengine.errors import DataError
    from ftengine_builtins.layouts import normal

    row = normal(row)
    kept = {name: value for name, value in row.items() if name not in ("messages", "prompt", "completion", "text")}
    messages = row.get("messages")
    if messages is not None:
        return kept, messages[:-1] if messages[-1].get("role") == "assistant" else messages
    prompt = row.get("prompt") if row.get("prompt") is not None else row.get("text")
    if not isinstance(prompt, (str, list)):
        raise DataError("the row has neither `prompt` nor `messages`, so that no row can be made of its answers.")
    return kept, prompt


def turns(prompt: str | list[Any]) -> list[Any]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def message(answer: Mapping[str, Any]) -> dict[str, Any]:
    thought = {"reasoning_content": answer["thought"]} if answer.get("thought") else {}
    return {"role": "assistant", "content": answer["completion"], **thought}
