"""The model card of an exported model, in Markdown: its base and data, its figures, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ftengine.api import Exported, Provenance
from ftengine.run.export import Manifest
from ftengine.run.records import RunRecords, Verdict
from ftengine.text import NOTHING, number, one_line, probability, with_ends

CARD = "README.md"
UNREAD = "not read; the hub's page of the base states it"
UNSTATED = "not stated by its source"
NOT_STATED = Provenance()
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
PLAIN = re.compile(r"[a-z0-9][a-z0-9-]*")
PATH = re.compile(r"(?<![\w.:/\\~-])(?:~?/|[A-Za-z]:[\\/])(?:[^\s/\\'\"`<>|]+[/\\])+[^\s/\\'\"`<>|,;:)]*")
"""Text that looks like an absolute path of two parts or more; labels and API addresses may also match."""
ROOTS = {
    *("content", "data", "home", "kaggle", "media", "mnt", "opt", "private", "root", "scratch", "srv", "tmp", "usr"),
    *("Users", "var", "Volumes", "work"),
}
"""First folders of paths on other machines; on this machine, all folders that exist count."""
LICENSES = frozenset(
    re.findall(
        r"\S+",
        """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research
    intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit
    mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 pddl postgresql unknown unlicense wtfpl zlib
    """,
    )
)
"""Identifiers of licences on the hub; any other licence is "other", with its name."""


def card(
    run: RunRecords,
    verdict: Verdict,
    made: Manifest,
    exported: Exported,
    base: Provenance = NOT_STATED,
    pipeline_tag: str = "",
) -> str:
    """Return the model card; texts from the run's files are escaped, and paths shortened to their last part.

    Args:
        exported: the exporter's facts about the files.
        base: licence and repository that the base's source states.
        pipeline_tag: the hub's tag of the task; "" if it has none.
    """
    recipe, usage = run.recipe, exported.usage
    name = base.repository or _name_of(recipe.model.source)
    paths = {str(run.path), *_paths(recipe.model_dump(mode="json"))}
    verdict = verdict.model_copy(
        update={
            "headline": _without_paths(verdict.headline, paths),
            "findings": [
                finding.model_copy(update={"text": _without_paths(finding.text, paths)}) for finding in verdict.findings
            ],
        }
    )
    made = made.model_copy(update={"unproven": _without_paths(made.unproven, paths)})
    parts = [
        _front(made, exported, base, name, pipeline_tag),
        f"# {_text(run.path.name)}",
        f"{_text(name)}, tuned by ftengine {_text(made.ftengine)} ({_text(made.strategy)}, task "
        f"{_text(recipe.task['name'])}), as {_text(made.format['name'])}.",
        f"## Results\n\n**{_text(verdict.headline)}**",
        _figures(run),
        _proof(made),
        "## Limits\n\n" + _limits(verdict),
        _data(run),
        f"## Base and licences\n\n- base: {_text(name)}, weights {_hash(made, run)}\n"
        f"- licence of the base: {_text(base.license) or (UNREAD if base.repository else UNSTATED)}\n"
        "- licence of the data: not recorded; ask the source of the data",
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
        return f"These files were not compared with the measured model: {_text(made.unproven)}."
    few = ". These rows are too few to distinguish them from the base beyond chance" * (proof.decision == "undecided")
    what = "outputs, by their size, are" if proof.same_answers is None else "log-probabilities of a token are"
    same = f"{proof.same_answers} of {proof.questions:,} greedy answers are the tuned model's, and "
    return (
        f"These files answered {proof.questions:,} rows of {_text(proof.split)} in {_text(proof.runtime)} and were "
        f"compared with the tuned model: {same * (proof.same_answers is not None)}the mean {what} "
        f"{number(proof.from_tuned)} from the tuned model's, where rounding explains {number(proof.noise)}, and "
        f"{number(proof.from_base)} from its base's{few}."
    )


def _limits(verdict: Verdict) -> str:
    limits = [f"- {finding.level}: {_text(finding.text)}" for finding in verdict.findings if finding.level != "good"]
    return "\n".join(limits or ["- none of those that ftengine checks for"])


def _data(run: RunRecords) -> str:
    rows = []
    for name, counts in run.audit.splits.items():
        encoded = run.audit.encoded.get(name, {})
        source = _name_of(counts.source)
        rows.append(f"| {_text(name)} | {_text(source)} | {counts.rows:,} | {_hex(encoded.get('content'))} |")
    return "\n".join(["## Data", "", "| split | source | rows | hash of the content |", "|---|---|---|---|", *rows])


def _hash(made: Manifest, run: RunRecords) -> str:
    return f"{_hex(run.trained.base.get('weights'))}, trained part {_hex(made.trained)}"


def _hex(value: Any) -> str:
    """Return a hash from a run's files in code marks; "not known" for any other value."""
    return f"`{value}`" if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{1,128}", value) else "not known"


def _front(made: Manifest, exported: Exported, base: Provenance, name: str, pipeline_tag: str) -> str:
    """Return the metadata that the hub reads, in YAML between lines of dashes."""
    licence = re.sub(r"[^a-z0-9.+-]+", "-", base.license.lower()).strip("-")[:60]
    has_identifier = licence in LICENSES
    front = {
        "base_model": base.repository or re.sub(r"[^\w.-]+", "-", name).strip("-."),
        "library_name": exported.library,
        "license": licence if has_identifier else "other" if licence else "",
        "license_name": "" if has_identifier else licence,
        "pipeline_tag": pipeline_tag,
        "tags": ["ftengine", *([made.strategy] if PLAIN.fullmatch(made.strategy) else [])],
    }
    text = yaml.safe_dump({key: value for key, value in front.items() if value}, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---"


def _name_of(source: str) -> str:
    """Return a name of the hub unchanged, and the last part of a path."""
    of_hub = HUB_NAME.fullmatch(source) and not Path(source).exists()
    return source if of_hub else re.split(r"[/\\]", source.rstrip("/\\"))[-1]


def _without_paths(text: str, paths: Iterable[str]) -> str:
    """Return text with given paths, and what looks like an absolute path, shortened to the last part."""

    def shortened(match: re.Match[str]) -> str:
        first = match[0].split("/")[1] if match[0].startswith("/") else ""
        return match[0] if first and first not in ROOTS and not Path("/", first).exists() else _name_of(match[0])

    for path in sorted(paths, key=len, reverse=True):
        text = text.replace(path, _name_of(path))
    return PATH.sub(shortened, text)


def _paths(values: Any) -> Iterator[str]:
    """Yield the texts of a recipe that contain a slash and exist as files or folders."""
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, (list, tuple)):
        for inner in values:
            yield from _paths(inner)
    elif isinstance(values, str) and re.search(r"[/\\]", values) and len(values) < 1000 and Path(values).exists():
        yield values


def _text(value: Any) -> str:
    """Return text on one line with Markdown, HTML, links and mentions escaped."""
    escaped = re.sub(r"([\\`*_{}\[\]()<>#|~&!$:@])", r"\\\1", one_line(str(value)))
    return escaped.replace("www.", "www\\.")
