"""Whether a model calls the right tools with the right arguments."""

import json
import math
from collections import Counter

import numpy as np
from pydantic import Field

from ftengine import api
from ftengine.api import ExampleScores
from ftengine.errors import InputError
from ftengine_builtins.evaluators.base import WeightedEvaluator, share
from ftengine_builtins.evaluators.weighted import finite_or_none, mean_of_finite, means, trials_of_means

DUE = ("call_parses", "right_function", "right_call", "exact_call")
UNDUE = "no_call_when_none_due"


class ToolUse(WeightedEvaluator):
    """Tool calls in answers compared with the data's: whether they parse, and whether functions and arguments agree.

    Measured is the answer at each row's last trained turn of the assistant that calls tools, or, without one, at its
    last trained turn. If calls are due, an answer is right if it makes the same calls, no more and no fewer, in any
    order, with arguments equal as JSON: key order does not matter, 1 equals 1.0, text never equals a number, and an
    optional argument left out counts as missing. If none is due and the row offers tools, an answer without a call is
    right. Calls are read in Hermes's and Qwen's <tool_call>, as JSON alone, as Llama 3.1 writes them, and in the form
    of the model's chat template.
    """

    name = "tool-use"

    class Config(api.Config):
        max_new_tokens: int = Field(256, ge=1, description="longest answer in tokens")

    reads = frozenset({"calls", "reference_calls"})
    metrics = {  # noqa: RUF012
        "right_call": share(
            "right calls", "Share of the answers due to call tools that make the same calls as the data.", primary=True
        ),
        "exact_call": share(
            "exact calls",
            "Share of the answers due to call tools that make the same calls, in order and written alike.",
        ),
        "right_function": share(
            "right functions", "Share of the answers due to call tools that call the same functions as often."
        ),
        "call_parses": share("calls that parse", "Share of the answers due to call tools in which a call can be read."),
        UNDUE: share("no call when none is due", "Share of the answers not due to call a tool that call none."),
    }

    def __init__(self, config=None):
        super().__init__(config)
        self.generation = {"max_new_tokens": self.config.max_new_tokens, "calls": True}

    def keep(self, prediction):
        """Return each figure's value, nan if it does not apply, and the numbers of calls due and made."""
        if prediction["calls"] is None:
            raise InputError(
                "evaluator 'tool-use' cannot read calls of tools as this model's chat template writes them (it reads "
                "a name with a JSON object of arguments behind it). Take it out of recipe key 'evaluate', or take a "
                "model whose template writes calls so."
            )
        wanted, made = prediction["reference_calls"], json.loads(prediction["calls"])
        nothing = dict.fromkeys((*DUE, UNDUE, "calls_due", "calls_made"), math.nan)
        if wanted is None:
            return nothing
        wanted = json.loads(wanted)
        counts = {"calls_due": float(len(wanted)), "calls_made": float(len(made))}
        if not wanted:
            return {**nothing, UNDUE: float(not made), **counts}
        names = [Counter(call["name"] for call in calls) for calls in (wanted, made)]
        return {
            **nothing,
            "call_parses": float(bool(made)),
            "right_function": float(names[0] == names[1]),
            "right_call": float(same_calls(wanted, made)),
            "exact_call": float(json.dumps(wanted) == json.dumps(made)),
            **counts,
        }

    def score_resamples(self, rows, weights):
        names = (*DUE, UNDUE)
        return dict(zip(names, means(weights, *(rows[name] for name in names)).T, strict=True))

    def trials(self, rows):
        return trials_of_means(rows, self.metrics)

    def example_weights(self, rows):
        return {name: (~np.isnan(rows[name])).astype(np.float64) for name in self.metrics}

    def score_examples(self, rows):
        """Score 1, and count as right, an answer with the same calls, or without calls if none is due."""
        right = np.where(np.isnan(rows["right_call"]), rows[UNDUE], rows["right_call"])
        return ExampleScores(right, right)

    def details(self, rows, estimate):
        """Yield the numbers of answers due to call tools and not, and examples of calls."""
        due = ~np.isnan(rows["right_call"])
        yield "with_calls", int(due.sum())
        yield "without_calls", int((~np.isnan(rows[UNDUE])).sum())
        for name in ("calls_due", "calls_made"):
            yield name, finite_or_none(mean_of_finite(np.where(due, rows[name], np.nan)))


def same_calls(wanted, made):
    """Return whether two lists hold the same calls in any order; true and 1 are not the same."""
    left = list(made)
    for call in wanted:
        at = next((n for n, other in enumerate(left) if typed(other) == typed(call)), None)
        if at is None:
            return False
        del left[at]
    return not left


def typed(value):
    """Return a JSON value in which true differs from 1, but 1 equals 1.0."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return ("text", value) if isinstance(value, str) else value
