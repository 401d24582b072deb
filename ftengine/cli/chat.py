"""`ftengine chat`: a conversation with a tuned model, its base, or both, in a terminal or from a pipe."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import click

from ftengine.cli.options import precision_option, require_one_process, run_argument, trust_code_option
from ftengine.run.progress import announce, listening
from ftengine.text import printable

if TYPE_CHECKING:
    from ftengine.engine.chat import Chat, Side

COMMANDS = {
    "/tuned": "the tuned model answers",
    "/base": "its base answers",
    "/both": "both answer, one after the other; the conversation goes on with the tuned model's answer",
    "/image": "FILE: the next turn begins with this picture, where the model reads pictures",
    "/reset": "begin a new conversation",
    "/help": "show this",
    "/quit": "end, as Ctrl-D does; Ctrl-C stops an answer",
}

ANSWER: dict[str, tuple[Side, ...]] = {"/tuned": ("tuned",), "/base": ("base",), "/both": ("tuned", "base")}
"""The models that answer after each command."""


@click.command()
@run_argument
@click.option("--base", is_flag=True, help="Begin with the base model.")
@precision_option
@click.option(
    "--option",
    "options",
    metavar="KEY=VALUE",
    multiple=True,
    help="An option of answers, e.g. max_new_tokens=200; may be given several times.",
)
@trust_code_option
def chat(run_folder: str, base: bool, precision: str | None, options: tuple[str, ...], trust_code: bool) -> None:
    """Talk with a tuned model, its base, or both.

    Template, stops and generation settings are those of the run's evaluation. In a terminal, /help lists commands. From
    a pipe, each line is a turn, and stdout has only the answers.

    \b
    Examples:
      ftengine chat runs/support
      echo "My screen is dark." | ftengine chat runs/support --base
    """
    announce(f"opening {run_folder}")
    from ftengine.engine.chat import Chat
    from ftengine.engine.fine_tune import load_run
    from ftengine.run.yaml_text import key_and_value

    require_one_process("chat", "talks with one user")
    chosen = dict(key_and_value(option, "--option", "max_new_tokens=200") for option in options)
    with listening(bars=False) as listener:
        run = load_run(run_folder, listener=listener, trust_code=trust_code, precision=precision)
        with Chat(run, chosen) as conversation:
            _talk(conversation, ANSWER["/base" if base else "/tuned"], terminal=sys.stdin.isatty())


def _talk(conversation: Chat, sides: tuple[Side, ...], *, terminal: bool) -> None:
    _introduce(conversation, sides)
    if terminal:
        _converse(conversation, sides)
    else:
        _answer_lines(conversation, sides)


def _converse(conversation: Chat, sides: tuple[Side, ...]) -> None:
    """Answer the lines that a user types, and carry out commands."""
    from ftengine.errors import DataError

    with CtrlC() as ctrl_c:
        for line in _typed(ctrl_c):
            text = line.strip()
            if text == "/quit":
                return
            if text in ANSWER:
                sides = ANSWER[text]
                _introduce(conversation, sides)
            elif text == "/reset":
                conversation.reset()
                click.echo("a new conversation", err=True)
            elif text == "/help":
                click.echo("\n".join(f"{name:<8}{what}" for name, what in COMMANDS.items()), err=True)
            elif text.startswith("/image "):
                _attach(conversation, text.removeprefix("/image ").strip())
            elif text.startswith("/") and text[1:].isalpha():
                click.echo(f"no command {text}. Commands: {', '.join(COMMANDS)}.", err=True)
            elif text:
                try:
                    _answer(conversation, line, sides, ctrl_c)
                except DataError as error:
                    click.echo(printable(f"{error} /reset begins a new conversation."), err=True)


def _attach(conversation: Chat, path: str) -> None:
    """Begin the next turn with a picture."""
    from ftengine.errors import DataError, InputError

    try:
        conversation.attach(path)
    except (DataError, InputError) as error:
        click.echo(printable(str(error)), err=True)
    else:
        click.echo(printable(f"the next turn begins with {path}"), err=True)


def _answer_lines(conversation: Chat, sides: tuple[Side, ...]) -> None:
    """Answer the lines of a pipe, none of which is a command (DataError: some could not be answered)."""
    from ftengine.errors import DataError

    failed, lines = list[int](), 0
    for number, line in enumerate(sys.stdin, 1):
        if not line.strip():
            continue
        lines += 1
        try:
            _answer(conversation, line.rstrip("\r\n"), sides, None)
        except DataError as error:
            failed.append(number)
            click.echo(printable(f"line {number}: {error}"), err=True)
    if failed:
        raise DataError(f"{len(failed)} of {lines} lines have no answer, the first is line {failed[0]}.")


class CtrlC:
    """A context manager: the first Ctrl-C stops an answer between two pieces, a second one ends the program.

    Ctrl-C does nothing outside the blocks `answering` and `raising`.
    """

    def __init__(self) -> None:
        self._pressed = 0
        self._answering = False

    def __enter__(self) -> CtrlC:
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _press(self, number: int, frame: Any) -> None:
        self._pressed += 1
        if self._answering and self._pressed > 1:
            raise KeyboardInterrupt

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Within the block, `check` raises `Stopped` after Ctrl-C."""
        self._pressed, self._answering = 0, True
        try:
            yield
        finally:
            self._answering = False

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Within the block, Ctrl-C raises KeyboardInterrupt at once."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, self._press)

    def check(self) -> None:
        """Raise `Stopped` if Ctrl-C was pressed."""
        if self._pressed:
            raise Stopped


class Stopped(Exception):
    """The user stopped an answer."""


def _introduce(conversation: Chat, sides: tuple[Side, ...]) -> None:
    """Print which models answer, and whether they continue lines one by one."""
    who = " and ".join({"tuned": "the tuned model", "base": "its base"}[side] for side in sides)
    click.echo(f"{who} {'answer' if len(sides) > 1 else 'answers'} (/help)", err=True)
    if not conversation.converses(sides[0]):
        click.echo("it was tuned without a chat template: it continues each line, without the lines before", err=True)


def _typed(ctrl_c: CtrlC) -> Iterator[str]:
    """Yield the lines that the user types."""
    with suppress(ImportError):
        import readline  # noqa: F401  # arrow keys
    while True:
        try:
            with ctrl_c.raising():
                line = input("> ")
        except KeyboardInterrupt:
            click.echo(err=True)
            continue
        except EOFError:
            click.echo(err=True)
            return
        yield line


def _answer(conversation: Chat, text: str, sides: tuple[Side, ...], ctrl_c: CtrlC | None) -> None:
    """Print the answers, and add the first one to the conversation."""
    first_answer: str | None = None
    for side in sides:
        written: list[str] = []

        def write(piece: str, written: list[str] = written) -> None:
            written.append(piece)
            click.echo(printable(piece), nl=False)
            sys.stdout.flush()
            if ctrl_c is not None:
                ctrl_c.check()

        if len(sides) > 1:
            click.echo(f"{side}: ", nl=False)
        try:
            with nullcontext() if ctrl_c is None else ctrl_c.answering():
                answer = conversation.answer(text, side, write)
        except Stopped:
            answer = "".join(written)
        click.echo()
        first_answer = answer if first_answer is None else first_answer
    if first_answer is not None and conversation.converses(sides[0]):
        conversation.keep(text, first_answer)
