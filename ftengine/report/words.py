"""Figures as words: every number with the digits that its interval supports, and with the interval."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ftengine.report.text import number

Figure = Mapping[str, Any]
"""{value, low, high, …} as evaluation.json holds it."""

METRICS = {
    "ece": "expected calibration error (ECE)",
    "ece_after_temperature": "ECE after temperature",
    "calibration_error": "calibration error, without chance",
    "roc_auc": "ROC AUC",
    "auc": "ROC AUC",
    "f1": "F1",
    "rmse": "root mean squared error",
    "mae": "mean absolute error",
    "mse": "mean squared error",
    "bleu": "BLEU",
    "chrf": "chrF",
    "nll": "negative log-likelihood",
    "brier": "Brier score",
    "r2": "R²",
}
"""Metrics whose name is not what people call them."""


def metric_name(metric: str) -> str:
    """Return a metric as people call it: macro_f1 is "macro F1"."""
    return METRICS.get(metric) or metric.replace("_", " ").replace(" f1", " F1").replace("rouge", "ROUGE-")


SEE_INSTEAD = {
    "ece": "overconfidence",
    "calibration_error": "overconfidence",
    "ece_after_temperature": "overconfidence",
}
"""Metrics that have no interval on however many examples, and the one to decide by."""

AT_ZERO = {"calibration_error": "none beyond chance"}
"""What it means that a metric is 0, where that is not perfection."""

MOST = 60
"""Characters that are shown of a text from the data, or of a path."""

FEW = 6
"""Distinct examples below which a bootstrap of 1,000 resamples resolves no interval (see `percentile_interval`)."""


def no_interval(metric: str, figures: Mapping[str, Figure]) -> str:
    """Say why a metric's difference has no interval.

    Args:
        metric: its name.
        figures: all metrics of one model.
    """
    examples = (figures.get(metric) or {}).get("n")
    if examples is not None and examples < FEW:
        return "too few examples to tell"
    instead = SEE_INSTEAD.get(metric)
    return f"no interval (see {instead})" if instead in figures else "no interval"


def at_zero(metric: str, figure: Figure | None) -> str:
    """Return what it means that a metric is 0; "" where it is not, or means what it says."""
    return AT_ZERO.get(metric, "") if figure and figure.get("value") == 0 else ""


def decimals(figure: Figure) -> int:
    """Return how many decimals a figure deserves: two significant digits of its interval's width.

    More, up to six, where an end would be rounded to 0 although the interval leaves 0 out. Without an interval, three,
    fewer from 10 on: three digits in all.
    """
    low, high = figure.get("low"), figure.get("high")
    if low is None or high is None or not high > low:
        size = abs(figure.get("value") or 0.0)
        return 3 if size < 10 else max(0, 2 - math.floor(math.log10(size)))
    places = max(0, 1 - math.floor(math.log10(high - low)))
    if low > 0 or high < 0:
        places = max(places, -math.floor(math.log10(min(abs(low), abs(high)))))
    return min(6, places)


def digits(value: float, places: int) -> str:
    """Return a number with so many decimals, thousands grouped, without a minus before nothing."""
    text = f"{value:,.{places}f}"
    return text.lstrip("-") if not float(text.replace(",", "")) else text.replace("-", "−")


def plain(figure: Figure | None, *, sign: bool = False) -> str:
    """Return a figure's value alone: "0.938"."""
    if not figure or figure.get("value") is None:
        return "–"
    text = digits(figure["value"], decimals(figure))
    return f"+{text}" if sign and figure["value"] > 0 else text


def against(tuned: Figure, base: Figure) -> str:
    """Return "1.67 against 2.24": two values of one metric, with the decimals that the more precise one deserves."""
    if tuned.get("value") is None or base.get("value") is None:
        return f"{plain(tuned)} against {plain(base)}"
    places = max(decimals(tuned), decimals(base))
    return f"{digits(tuned['value'], places)} against {digits(base['value'], places)}"


def interval(figure: Figure | None, *, sign: bool = False) -> str:
    """Return a figure's interval: "0.910 to 0.959", or "" where there is none."""
    if not figure or figure.get("low") is None or figure.get("high") is None:
        return ""
    places = decimals(figure)
    ends = (f"{'+' if sign and end > 0 else ''}{digits(end, places)}" for end in (figure["low"], figure["high"]))
    return " to ".join(ends)


def with_interval(figure: Figure | None, *, sign: bool = False) -> str:
    """Return "0.938 (95 % interval 0.910 to 0.959)"."""
    ends = interval(figure, sign=sign)
    return f"{plain(figure, sign=sign)} (95 % interval {ends})" if ends else plain(figure, sign=sign)


def percent(value: float) -> str:
    """Return a share as people read it: "78 %", below ten "3.2 %"."""
    share = 100 * value
    return f"{share:.0f} %" if share >= 10 or share == 0 else f"{share:.2g} %"


def probability(p: float | None) -> str:
    """Return a p-value: "p = 0.03", "p < 0.001"."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {number(float(f'{p:.2g}'))}"


def listed(words: list[str], conjunction: str = "and") -> str:
    """Return "a", "a and b", "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {conjunction} {words[-1]}"


def quoted(value: Any) -> str:
    """Return a text from the data in quotes, on one line and short."""
    return f"“{short(value)}”"


def short(value: Any) -> str:
    """Return a text from the data on one line of at most 60 characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= MOST else f"{text[: MOST - 1]}…"


def short_place(value: Any) -> str:
    """Return places of rows ("train.jsonl:12 ≈ test.jsonl:3") of at most 60 characters each.

    A path is shortened in its folders, or in the middle of its name, and keeps its end and its line.
    """
    parts = re.split(r"( [=≈&≠] )", " ".join(str(value).split()))
    return "".join(part if i % 2 else _short_path(part) for i, part in enumerate(parts))


def _short_path(text: str) -> str:
    if len(text) <= MOST:
        return text
    folders, slash, name = text.rpartition("/")
    if not slash or len(name) > MOST - 2:
        return f"{text[: MOST // 4]}…{text[-(MOST - 1 - MOST // 4) :]}"
    room = MOST - len(name) - 2
    return f"{folders[:room]}…/{name}"


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return "1 example", "2 examples", "1,200 examples"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
