"""`ftengine studio`: a local page to judge answers, look at data and follow runs."""

from __future__ import annotations

import secrets
import shlex
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ftengine_studio.runs import StudioRun

LOCAL = "127.0.0.1"


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=click.Path())
@click.option("--host", default=LOCAL, show_default=True, help="Address to listen on; another one opens it to others.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port to listen on. Default: a free one.")
@click.option(
    "--new",
    "new",
    type=click.IntRange(min=1),
    metavar="N",
    help="First let base and tuned model answer N further held-out prompts, as in the evaluation.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Order of prompts and sides; draws --new."
)
@click.option("--open", "opens", is_flag=True, help="Open the page in a browser.")
@click.option("--trust-code", is_flag=True, help="Let runs import the Python code that their recipes name.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks, and other libraries' warnings.")
def studio(
    runs: tuple[str, ...], host: str, port: int, new: int | None, seed: int, opens: bool, trust_code: bool
) -> None:
    """Judge answers, look at data and follow runs on a local page.

    The address that is printed holds a token, without which nothing is answered. RUN is a folder of a run, or a folder
    with runs; by default those in `runs`. Judgements go to judgements.jsonl in the run's folder as they are made, so
    the server may be stopped at any time (Ctrl-C).

    \b
    Examples:
      ftengine studio runs/support
      ftengine studio runs/support --new 50
      ftengine studio runs/lora runs/full
    """
    from ftengine.errors import InputError
    from ftengine_studio.runs import find_runs

    found = find_runs(runs)
    if new is not None:
        _make_answers(found, new, seed, trust_code)
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f"cannot listen on {host} port {port}: {error.strerror or error}.") from None
    with listening:
        _serve(found, listening, host, seed, opens=opens, trust_code=trust_code)


def _make_answers(runs: list[StudioRun], count: int, seed: int, trust_code: bool) -> None:
    """Let the models of finished runs answer further prompts, and print how many there are now."""
    from ftengine import listening
    from ftengine_studio.answers import answers_of, make_answers

    for run in runs:
        if not run.finished:
            click.echo(f"{run.name} is not finished: it has no models to answer", err=True)
            continue
        click.echo(f"{run.name}: base and tuned model answer up to {count:,} held-out prompts …", err=True)
        with listening() as listener:
            made = make_answers(run, count, seed, listener, trust_code=trust_code)
        click.echo(f"{run.name}: {made:,} new, {len(answers_of(run)):,} prompts in all", err=True)


def _serve(
    runs: list[StudioRun], listening: socket.socket, host: str, seed: int, *, opens: bool, trust_code: bool
) -> None:
    import uvicorn

    from ftengine_studio.server import Studio

    token, port = secrets.token_urlsafe(24), listening.getsockname()[1]
    app = Studio(runs, seed, trust_code=trust_code).app(token, host, port)
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{port}/?token={token}"
    click.echo(f"{', '.join(run.name for run in runs)}: {address}")
    if host != LOCAL:
        click.echo(f"whoever can reach {name}:{port} and knows the address can judge and stop runs", err=True)
    click.echo("Ctrl-C ends it; judgements are kept as they are made", err=True)
    if opens:
        import webbrowser

        webbrowser.open(address)
    config = uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, ws="none", timeout_graceful_shutdown=2
    )
    with suppress(KeyboardInterrupt):  # how the server is meant to be ended
        uvicorn.Server(config).run(sockets=[listening])
    click.echo(_ended(runs), err=True)


def _ended(runs: list[StudioRun]) -> str:
    """Return the last line: the server is gone, and where judgements wait to be taken into a verdict."""
    from ftengine_studio.judgements import FILE

    waiting = [run for run in runs if run.finished and _is_newer(run.path / FILE, run.path / "verdict.json")]
    renew = "; ".join(f"`ftengine report {shlex.quote(str(run.path))} --renew`" for run in waiting)
    return "ended" + (f"; judgements that are not in the verdict yet are taken into it by {renew}" if renew else "")


def _is_newer(file: Path, other: Path) -> bool:
    try:
        return file.stat().st_mtime_ns > other.stat().st_mtime_ns
    except OSError:
        return False
