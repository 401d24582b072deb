"""Options of a command that asks an endpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def endpoint_options(*, max_time: float, retries: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that gives a click command key_variable, timeout, max_time and retries of an `Endpoint`.

    Args:
        max_time, retries: the defaults; seconds for all requests, and how often a failed one is tried again.
    """
    options = (
        click.option(
            "--key-variable",
            default="OPENAI_API_KEY",
            show_default=True,
            metavar="NAME",
            help="Environment variable with the API key.",
        ),
        click.option(
            "--timeout", type=click.FloatRange(min=0.1), default=60, show_default=True, help="Seconds for one request."
        ),
        click.option(
            "--max-time",
            type=click.FloatRange(min=1),
            default=max_time,
            show_default=True,
            help="Seconds for all requests.",
        ),
        click.option(
            "--retries",
            type=click.IntRange(0, 10),
            default=retries,
            show_default=True,
            help="Retries of a failed request.",
        ),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
