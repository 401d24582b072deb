"""`ftengine bench`: measure the low-rank kernels, and detect regressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ftengine_bench.options import COMPARE, EXPERTS, KERNELS, Options


@click.group()
def bench() -> None:
    """Measure the low-rank kernels, and compare measurements."""


def _with(options: Options) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for flag, (metavar, default, text) in reversed(options.items()):
            more = {"multiple": isinstance(default, list), "default": default, "show_default": True}
            command = click.option(flag, metavar=metavar, help=text, **more)(command)
        return command

    return decorate


@bench.command()
@_with(KERNELS)
def kernels(**options: Any) -> None:
    """Time low-rank layers against the frozen layer, PyTorch and PEFT, and each operator alone.

    \b
    Example:
      ftengine bench kernels --json before.json
    """
    from ftengine_bench.__main__ import kernels as measure

    measure(**options)


@bench.command()
@_with(EXPERTS)
def experts(**options: Any) -> None:
    """Time a layer of experts with low-rank updates against the frozen layer, a loop, grouped products and PEFT.

    \b
    Example:
      ftengine bench experts --preset qwen3-30b-a3b --scale 4 --dtype bfloat16
    """
    from ftengine_bench.__main__ import experts as measure

    measure(**options)


@bench.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@_with(COMPARE)
def compare(**options: Any) -> None:
    """Compare measurements with the first of them, row by row.

    Times are compared relative to the frozen layer of the same run, so a slower machine changes little.

    \b
    Example:
      ftengine bench compare before.json after.json --fail-over 5%
    """
    from ftengine_bench.__main__ import comparison

    comparison(**options)
