"""What tuning cost elsewhere: forgetting, robustness, memorisation, refusals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ftengine.report.files import RunFiles
from ftengine.report.findings.finding import Finding
from ftengine.report.words import counted, metric_name, percent, plain, short, with_interval

FORGETTING = 0.05
"""Loss on general data relative to the base, at the interval's near end, from which forgetting is an alarm: with much
general text a change of a thousandth is beyond chance, and harmless."""

ROBUSTNESS_DROP = 0.20
"""Relative drop under disturbed input, at the interval's near end, that is an alarm. Any model loses something."""

MEMORISATION = 0.05
"""Share of training answers given back verbatim beyond the held-out share, at the interval's near end, for an alarm."""


def probes(files: RunFiles) -> Iterator[Finding]:
    """Read every probe of evaluation.json by its kind."""
    readers = {
        "forgetting": _forgetting,
        "robustness": _robustness,
        "memorisation": _memorisation,
        "refusal": _refusal,
    }
    for probe in files.evaluation.get("probes") or []:
        if probe["kind"] in readers:
            yield from readers[probe["kind"]](probe)


def _forgetting(probe: Mapping[str, Any]) -> Iterator[Finding]:
    compared = probe.get("difference") or {}
    lost = [metric for metric, difference in compared.items() if difference.get("better") is False]
    lost.sort(key="perplexity".__ne__)  # says more than the loss that it is made of
    for metric in lost[:1]:
        difference, base, tuned = compared[metric], probe["base"][metric], probe["tuned"][metric]
        near = relative(difference, base)
        level = "alarm" if near is None or near >= FORGETTING else "note"
        change = abs(difference["value"]) / abs(base["value"]) if base.get("value") else None
        yield Finding(
            "forgetting",
            level,  # type: ignore[arg-type]
            f"Forgetting: on {_about(probe)}, the tuned model is worse than its base: {metric_name(metric)} "
            f"{plain(tuned)} against {plain(base)}, {with_interval(difference, sign=True)}"
            + (f", {percent(change)} of the base's." if change is not None else "."),
            {"probe": probe.get("name"), "metric": metric, "base": base, "tuned": tuned, "difference": difference},
        )
    if compared and not lost:
        metric, difference = next(iter(compared.items()))
        yield Finding(
            "forgetting",
            "good",
            f"No forgetting beyond chance on {_about(probe)}: {metric_name(metric)} changed by "
            f"{with_interval(difference, sign=True)}.",
            {"probe": probe.get("name"), "metric": metric, "difference": difference},
        )


def _robustness(probe: Mapping[str, Any]) -> Iterator[Finding]:
    for metric, change in (probe.get("against") or {}).items():
        if change.get("better") is not False:
            continue
        tuned = probe["tuned"].get(metric) or {}
        clean = (tuned.get("value") or 0.0) - change["value"]
        near = relative(change, {"value": clean})
        yield Finding(
            "robustness",
            "alarm" if near is not None and near >= ROBUSTNESS_DROP else "note",
            f"Under {short(probe['name'])}, the tuned model's {metric_name(metric)} is {plain(tuned)}: "
            f"{with_interval(change, sign=True)} against undisturbed input.",
            {"probe": probe["name"], "metric": metric, "tuned": tuned, "against": change},
        )
        return  # the first metric that drops; the others stand in the table


def _memorisation(probe: Mapping[str, Any]) -> Iterator[Finding]:
    for metric, excess in (probe.get("against") or {}).items():
        low, high = excess.get("low"), excess.get("high")
        if low is None or high is None or low <= 0 <= high:
            continue
        seen = probe["tuned"].get(metric)
        new = ((probe.get("details") or {}).get("held_out") or {}).get("tuned", {}).get(metric)
        if excess["value"] < 0:
            continue
        yield Finding(
            "memorisation",
            "alarm" if low >= MEMORISATION else "note",
            f"Learnt by heart: {metric_name(metric)} is {plain(seen)} on training examples"
            + (f" and {plain(new)} on held-out ones" if new else "")
            + f", {with_interval(excess, sign=True)} more. Private text in the training data may be given back.",
            {"metric": metric, "training": seen, "held_out": new, "difference": excess},
        )
        return


def _refusal(probe: Mapping[str, Any]) -> Iterator[Finding]:
    for metric, difference in (probe.get("difference") or {}).items():
        if difference.get("better") is not False:
            continue
        base, tuned = probe["base"][metric], probe["tuned"][metric]
        yield Finding(
            "refusal",
            "alarm",
            f"Safety regressed on {_about(probe)}: {metric_name(metric)} {plain(tuned)} against {plain(base)} under "
            f"the base, {with_interval(difference, sign=True)}.",
            {"metric": metric, "base": base, "tuned": tuned, "difference": difference},
        )


def relative(change: Mapping[str, Any], base: Mapping[str, Any]) -> float | None:
    """Return the near end of a change relative to where it started, or None where it has no interval."""
    low, high, start = change.get("low"), change.get("high"), base.get("value")
    if low is None or high is None or not start:
        return None
    return 0.0 if low <= 0 <= high else min(abs(low), abs(high)) / abs(start)


def _about(probe: Mapping[str, Any]) -> str:
    count = probe.get("examples")
    return short(probe.get("data") or probe.get("name")) + (f" ({counted(count, 'example')})" if count else "")
