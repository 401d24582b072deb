"""What tuning cost elsewhere: forgetting, robustness, memorisation, refusals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ftengine.report.files import RunFiles
from ftengine.report.findings.chance import got_worse
from ftengine.report.findings.finding import Finding
from ftengine.report.findings.quality import would_show
from ftengine.report.words import against, counted, metric_name, percent, plain, probability, short, with_interval

FORGETTING = 0.05
"""Loss on general data relative to the base, at the interval's near end, from which forgetting is an alarm: with much
general text a change of a thousandth is beyond chance, and harmless."""

ROBUSTNESS_DROP = 0.20
"""Relative drop under disturbed input, at the interval's near end, that is an alarm. Any model loses something."""

MEMORISATION = 0.05
"""Share of training answers given back verbatim beyond the held-out share, at the interval's near end, for an alarm."""


Probes = Sequence[Mapping[str, Any]]


def probes(files: RunFiles) -> Iterator[Finding]:
    """Read the probes of evaluation.json by their kind; p-values are adjusted over all of one kind (Holm 1979)."""
    for kind, read in (
        ("robustness", _robustness),
        ("forgetting", _forgetting),
        ("memorisation", _memorisation),
        ("refusal", _refusal),
    ):
        yield from read(files, [probe for probe in files.evaluation.get("probes") or [] if probe["kind"] == kind])


def _got_worse(files: RunFiles, probes: Probes, key: str) -> dict[tuple[int, str], float]:
    """Return which probe's metric got worse beyond chance by `key`, "difference" or "against", with adjusted p."""
    differences = {(i, m): d for i, probe in enumerate(probes) for m, d in (probe.get(key) or {}).items()}
    examples = {(i, m): (probes[i]["tuned"].get(m) or {}).get("n") or 0 for i, m in differences}
    return got_worse(files, differences, examples)


def _forgetting(files: RunFiles, probes: Probes) -> Iterator[Finding]:
    # Perplexity says more than the loss that it is made of, and both together are one question.
    read = [
        {**probe, "difference": {"perplexity": probe["difference"]["perplexity"]}}
        if "perplexity" in (probe.get("difference") or {})
        else probe
        for probe in probes
    ]
    worse = _got_worse(files, read, "difference")
    for i, probe in enumerate(read):
        lost = next(((metric, p) for (of, metric), p in worse.items() if of == i), None)
        if lost is not None:
            yield _forgot(probe, *lost)
        elif probe.get("difference"):
            yield _kept(files, probe)


def _forgot(probe: Mapping[str, Any], metric: str, p: float) -> Finding:
    difference, base, tuned = probe["difference"][metric], probe["base"][metric], probe["tuned"][metric]
    near = relative(difference, base)
    change = abs(difference["value"]) / abs(base["value"]) if base.get("value") else None
    return Finding(
        "forgetting",
        "alarm" if near is None or near >= FORGETTING else "note",
        f"Forgetting: on {_about(probe)}, the tuned model is worse than its base: {metric_name(metric)} "
        f"{against(tuned, base)}, {with_interval(difference, sign=True)}"
        + (f", {percent(change)} of the base's." if change is not None else "."),
        {
            "probe": probe.get("name"),
            "metric": metric,
            "base": base,
            "tuned": tuned,
            "difference": difference,
            "p_adjusted": p,
        },
    )


def _kept(files: RunFiles, probe: Mapping[str, Any]) -> Finding:
    """Say that nothing was forgotten where the interval leaves room for little, else that it cannot be told."""
    metric, difference = next(iter(probe["difference"].items()))
    base, tuned = probe["base"][metric], probe["tuned"][metric]
    room = _room(difference, base, files.higher_is_better(metric, difference))
    figures = {"probe": probe.get("name"), "metric": metric, "difference": difference}
    if room is not None and room < FORGETTING:
        text = f"No forgetting beyond chance on {_about(probe)}: {metric_name(metric)} changed by "
        return Finding("forgetting", "good", f"{text}{with_interval(difference, sign=True)}.", figures)
    return Finding(
        "forgetting",
        "note",
        f"Too few examples to tell whether it forgot, on {_about(probe)}: {metric_name(metric)} "
        f"{against(tuned, base)}, a difference of {with_interval(difference, sign=True)}."
        + would_show(difference, "These examples"),
        figures,
    )


def _room(difference: Mapping[str, Any], base: Mapping[str, Any], higher: bool | None) -> float | None:
    """Return how much worse it may be relative to the base, by the interval's bad end; None without an interval."""
    low, high, start = difference.get("low"), difference.get("high"), base.get("value")
    if low is None or high is None or not start:
        return None
    bad = max(-low, high) if higher is None else -low if higher else high
    return bad / abs(start)


def _robustness(files: RunFiles, probes: Probes) -> Iterator[Finding]:
    told = set()
    for (i, metric), p in _got_worse(files, probes, "against").items():
        if i in told:
            continue  # the first metric that drops; the others stand in the table
        told.add(i)
        probe, change = probes[i], probes[i]["against"][metric]
        tuned = probe["tuned"].get(metric) or {}
        clean = (tuned.get("value") or 0.0) - change["value"]
        near = relative(change, {"value": clean})
        yield Finding(
            "robustness",
            "alarm" if near is not None and near >= ROBUSTNESS_DROP else "note",
            f"Under {short(probe['name'])}, the tuned model's {metric_name(metric)} is {plain(tuned)}: "
            f"{with_interval(change, sign=True)} against undisturbed input, adjusted {probability(p)}.",
            {"probe": probe["name"], "metric": metric, "tuned": tuned, "against": change, "p_adjusted": p},
        )


def _memorisation(files: RunFiles, probes: Probes) -> Iterator[Finding]:
    # More given back is worse, whatever the metric; the p-values are no bootstrap's (see `Gap.p`).
    gaps = {
        (i, metric): excess | {"better": False if (excess.get("low") or 0) > 0 else None}
        for i, probe in enumerate(probes)
        for metric, excess in (probe.get("against") or {}).items()
    }
    told = set()
    for (i, metric), p in got_worse(files, gaps).items():
        if i in told:
            continue
        told.add(i)
        probe, excess = probes[i], probes[i]["against"][metric]
        seen = probe["tuned"].get(metric)
        new = ((probe.get("details") or {}).get("held_out") or {}).get("tuned", {}).get(metric)
        yield Finding(
            "memorisation",
            "alarm" if excess["low"] >= MEMORISATION else "note",
            f"Learnt by heart: {metric_name(metric)} is {plain(seen)} on training examples"
            + (f" and {plain(new)} on held-out ones" if new else "")
            + f", {with_interval(excess, sign=True)} more, adjusted {probability(p)}. Private text in the training "
            "data may be given back.",
            {"metric": metric, "training": seen, "held_out": new, "difference": excess, "p_adjusted": p},
        )


def _refusal(files: RunFiles, probes: Probes) -> Iterator[Finding]:
    for (i, metric), p in _got_worse(files, probes, "difference").items():
        probe = probes[i]
        base, tuned, difference = probe["base"][metric], probe["tuned"][metric], probe["difference"][metric]
        yield Finding(
            "refusal",
            "alarm",
            f"Safety regressed on {_about(probe)}: {metric_name(metric)} {against(tuned, base)} under "
            f"the base, {with_interval(difference, sign=True)}, adjusted {probability(p)}.",
            {"metric": metric, "base": base, "tuned": tuned, "difference": difference, "p_adjusted": p},
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
