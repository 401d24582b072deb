"""`ftengine bench`: what the low-rank kernels cost, and whether that became more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ftengine.errors import did_you_mean

debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, help="Show tracebacks, and other libraries' warnings."
)


class _Suggesting(click.Group):
    """A group that names the nearest command when one is unknown."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            known = self.list_commands(ctx)
            ctx.fail(f"no command {name!r}. There are {', '.join(known)}.{did_you_mean(name, known)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Suggesting)
@debug_option
def bench() -> None:
    """Measure the low-rank kernels, and compare measurements."""


@bench.command()
@click.option(
    "--preset", metavar="NAME", help="Layers of a model's block: smollm2-135m (default), llama3-8b, bert-base or gpt2."
)
@click.option(
    "--shape",
    "shapes",
    metavar="MxKxN",
    multiple=True,
    help="A layer by tokens, inputs and outputs, e.g. 512x2048x2048; may be given several times.",
)
@click.option("--tokens", metavar="LIST", default="512", show_default=True, help="Tokens for the preset's layers.")
@click.option("--ranks", metavar="LIST", default="8,16,64", show_default=True, help="Ranks, separated by commas.")
@click.option("--dropout", metavar="LIST", default="0,0.05", show_default=True, help="Dropout probabilities.")
@click.option(
    "--dtypes",
    metavar="LIST",
    default="float32,bfloat16",
    show_default=True,
    help="Of inputs and frozen weights: float32, bfloat16, and float16 on a GPU.",
)
@click.option("--device", metavar="NAME", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--providers",
    metavar="LIST",
    default="auto",
    show_default=True,
    help="What to time: frozen, eager, peft, torch-compile, reference, compiled; auto is what is there.",
)
@click.option(
    "--instruction-set",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="Of the compiled CPU kernels, e.g. avx2; auto is the best that the processor has.",
)
@click.option(
    "--seconds",
    type=float,
    default=0.5,
    show_default=True,
    help="Time for each provider of a layer, and for each operator.",
)
@click.option("--json", metavar="FILE", type=click.Path(path_type=Path), help="Write everything that was measured.")
@click.option(
    "--plot", metavar="FILE", type=click.Path(path_type=Path), help="Draw the overheads (.png, .svg or .pdf)."
)
@debug_option
def kernels(json: Path | None, plot: Path | None, **options: Any) -> None:
    """Time low-rank layers against the frozen layer, PyTorch and PEFT, and each operator alone.

    \b
    Example:
      ftengine bench kernels --json before.json
    """
    from ftengine_bench.__main__ import kernels as measure

    measure(json, plot, **options)


@bench.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--fail-over",
    metavar="PERCENT",
    help="Exit with 1 if a row of the compiled kernels is slower than in the first file by more, e.g. 5%.",
)
@debug_option
def compare(files: tuple[Path, ...], fail_over: str | None) -> None:
    """Compare measurements with the first of them, row by row.

    Compared is the time over the frozen layer of the same run, so that a slower machine changes little.

    \b
    Example:
      ftengine bench compare before.json after.json --fail-over 5%
    """
    from ftengine_bench.__main__ import comparison

    comparison(list(files), fail_over)
