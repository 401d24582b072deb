"""The card of an exported model, in Markdown: what it was made of, what was measured, how it is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ftengine.run.export import Manifest
from ftengine.run.records import RunRecords, Verdict
from ftengine.text import NOTHING, number, one_line, probability, with_ends

CARD = "README.md"
UNREAD = "not read; the hub's page of the base states it"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def card(run: RunRecords, verdict: Verdict, made: Manifest, usage: str) -> str:
    """Return the card; whatever a run's files say is escaped, and of paths only the last part is shown.

    Args:
        usage: a shell command or Python that loads the model, as the exporter says.
    """
    recipe = run.recipe
    base, of_hub = _name_of(recipe.model.source)
    license = _license(_card_of(recipe.model.source, of_hub=of_hub))
    front: dict[str, Any] = {"tags": ["ftengine"]}
    front |= {"base_model": recipe.model.source} if of_hub else {}
    front |= {"license": license} if license else {}
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {_text(run.path.name)}",
        f"{_text(base)}, tuned by ftengine {_text(made.ftengine)} ({_text(made.strategy)}, task "
        f"{_text(recipe.task['name'])}), as {_text(made.format['name'])}.",
        f"## What came of it\n\n**{_text(verdict.headline)}**",
        _figures(run),
        _proof(made),
        "## Limits\n\n" + _limits(verdict),
        _data(run),
        f"## Base and licences\n\n- base: {_text(base)}, weights {_hash(made, run)}\n"
        f"- licence of the base: {_text(license) or (UNREAD if of_hub else 'not stated where it was loaded from')}\n"
        "- licence of the data: not recorded; ask whoever the data is from",
        f"## How to load it\n\n```\n{usage}\n```" if usage else "",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _figures(run: RunRecords) -> str:
    evaluation, split = run.evaluation, run.evaluation.split
    if split is None:
        return "There are no held-out examples, so no figures."
    rows = []
    for name, tuned in evaluation.tuned.items():
        metric, change = evaluation.metrics[name], evaluation.difference.get(name)
        p = probability(change.p if change else None) or "not tested"
        sides = [
            with_ends(evaluation.base[name]),
            with_ends(tuned),
            with_ends(change, sign=True) if change else NOTHING,
        ]
        rows.append(f"| {_text(metric.label)} | {' | '.join(sides)} | {p} |")
    head = f"On {evaluation.tuned[next(iter(evaluation.tuned))].n:,} distinct {split} examples, with 95 % intervals:"
    return "\n".join([head, "", "| | base | tuned | difference | |", "|---|---|---|---|---|", *rows])


def _proof(made: Manifest) -> str:
    if (proof := made.proof) is None:
        return f"These files were not compared with the model that was measured: {_text(made.unproven)}."
    verdicts = {"tuned": "are the tuned model", "undecided": "are within rounding of the tuned model"}
    few = ". That many rows are too few to tell them from its base beyond chance" * (proof.decision == "undecided")
    what = "outputs, by their size," if proof.same_answers is None else "log-probability of a token"
    return (
        f"These files {verdicts[proof.decision]}, asked by {_text(proof.runtime)} on {proof.questions:,} rows of "
        f"{_text(proof.split)}: the mean {what} is {number(proof.from_tuned)} from the tuned model's, where "
        f"{number(proof.noise)} is explained by rounding, and {number(proof.from_base)} from its base's{few}."
    )


def _limits(verdict: Verdict) -> str:
    limits = [f"- {one.level}: {_text(one.text)}" for one in verdict.findings if one.level != "good"]
    return "\n".join(limits or ["- none that ftengine looks for was found"])


def _data(run: RunRecords) -> str:
    rows = []
    for name, counts in run.audit.splits.items():
        encoded = run.audit.encoded.get(name, {})
        source, _ = _name_of(counts.source)
        rows.append(f"| {_text(name)} | {_text(source)} | {counts.rows:,} | {_hex(encoded.get('content'))} |")
    return "\n".join(["## Data", "", "| split | source | rows | hash of the content |", "|---|---|---|---|", *rows])


def _hash(made: Manifest, run: RunRecords) -> str:
    return f"{_hex(run.trained.base.get('weights'))}, trained part {_hex(made.trained)}"


def _hex(value: Any) -> str:
    """Return a hash that a run's files hold; what is none is not shown."""
    return f"`{value}`" if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{1,128}", value) else "not known"


def _name_of(source: str) -> tuple[str, bool]:
    """Return how a source is called, and whether it is a name of the hub; of a path the last part."""
    of_hub = bool(HUB_NAME.fullmatch(source)) and not Path(source).exists()
    return (source if of_hub else re.split(r"[/\\]", source.rstrip("/\\"))[-1]), of_hub


def _card_of(source: str, *, of_hub: bool) -> Path | None:
    """Return where the card of a base would be: in its folder, or in the hub's cache on this machine."""
    if not of_hub:
        return Path(source) / CARD
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, CARD)
    return Path(found) if isinstance(found, str) else None


def _license(file: Path | None) -> str:
    """Return the licence that a card states; "" where it states none, or there is none."""
    if file is None or not file.is_file():
        return ""
    match = re.match(r"---\n(.*?)\n---", file.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        front = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return ""
    stated = front.get("license") if isinstance(front, dict) else None
    return stated if isinstance(stated, str) and re.fullmatch(r"[\w.+-]{1,60}", stated) else ""


def _text(value: Any) -> str:
    """Return text on one line in which nothing is Markdown, HTML, a link or a mention."""
    escaped = re.sub(r"([\\`*_{}\[\]()<>#|~&!$:@])", r"\\\1", one_line(str(value)))
    return escaped.replace("www.", "www\\.")
