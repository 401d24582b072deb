"""`chat`: answers are those of `predict`, turn by turn, from a pipe or a terminal."""

import json
import signal
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from expected import raises

from ftengine import fine_tune, load_run
from ftengine.cli import chat as command
from ftengine.cli import main
from ftengine.engine.chat import Chat
from ftengine.errors import InputError
from ftengine.text import printable
from ftengine_builtins.tasks.causal_lm import CausalLM
from ftengine_builtins.tasks.text_classification import TextClassification

FIRST, SECOND = "the printer does not start (7)", "my screen is very slow (8) please help"


@pytest.fixture(scope="module")
def run(talking_run):
    return load_run(talking_run)


def user(text):
    return {"role": "user", "content": text}


def predicted(run, turns, **settings):
    [answer] = run.predict([{"messages": turns}], options={"max_new_tokens": 12}, **settings)
    return answer["completion"]


@pytest.fixture(scope="module")
def conversation(run):
    """What `predict` answers, with the turns before."""
    found = {}
    for side in ("tuned", "base"):
        first = predicted(run, [user(FIRST)], base=side == "base")
        before = [user(FIRST), {"role": "assistant", "content": first}] if first.strip() else []
        turns = [*before, user(SECOND)]
        found[side] = [first, predicted(run, turns, base=side == "base")]
    assert found["tuned"][0].strip()
    assert found["tuned"][0] != found["base"][0]
    return found


@pytest.fixture
def asked(monkeypatch):
    """The conversations that models are asked."""
    found, infer = [], CausalLM.infer

    def spy(task, loaded, rows, options=None):
        found.extend([turn["content"] for turn in row["messages"]] for row in rows)
        return infer(task, loaded, rows, options)

    monkeypatch.setattr(CausalLM, "infer", spy)
    return found


def typed(run, *lines, options=()):
    arguments = ["chat", str(run.path), "--option", "max_new_tokens=12", *options]
    return CliRunner().invoke(main, arguments, input="".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("side", ["tuned", "base"])
def test_from_a_pipe_each_line_is_a_turn_of_one_conversation(run, conversation, asked, side):
    result = typed(run, FIRST, "", SECOND, options=["--base"] if side == "base" else [])
    assert result.exit_code == 0, result.output
    first, second = conversation[side]
    assert result.stdout == "".join(f"{printable(text)}\n" for text in (first, second))
    before = [FIRST, first] if first.strip() else []
    assert asked == [[FIRST], [*before, SECOND]]


def test_both_answer_and_the_conversation_goes_on_with_the_tuned_models(run, conversation, asked, monkeypatch, capsys):
    lines = iter(
        [
            "/both",
            FIRST,
            "/tuned",
            SECOND,
            "/help",
            "/bsae",
            "/image",
            "/image a.png",
            "/reset",
            FIRST,
            "/quit",
            "never asked",
        ]
    )
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    with Chat(run, {"max_new_tokens": 12}) as chat:
        command._talk(chat, ("tuned",), terminal=True)
    first, second = conversation["tuned"]
    shown, told = capsys.readouterr()
    said = (f"tuned: {first}", f"base: {conversation['base'][0]}", second, first)
    assert shown == "".join(f"{printable(text)}\n" for text in said)
    assert asked == [[FIRST], [FIRST], [FIRST, first, SECOND], [FIRST]]
    assert "no command /bsae" in told
    assert "reads no pictures" in told
    assert set(command.COMMANDS) <= set(told.split())


def pressing(times):
    """Return a conversation in which Ctrl-C is pressed as soon as an answer begins, and with what comes behind it."""

    class Pressed(Chat):
        def answer(self, text, side, write):
            def first(piece):
                signal.raise_signal(signal.SIGINT)
                for _ in range(times - 1):
                    signal.raise_signal(signal.SIGINT)
                write(f"\033[31m{piece}")

            return super().answer(text, side, first)

        def keep(self, text, answer):
            signal.raise_signal(signal.SIGINT)  # when the answer has been stopped
            super().keep(text, answer)

    return Pressed


@pytest.fixture
def _ctrl_c_is_heard():
    """What a shell starts in the background ignores SIGINT, and the tests with it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_is_heard")
def test_in_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_ends(run, monkeypatch, capsys):
    typed = iter([FIRST, KeyboardInterrupt, EOFError])

    def read(prompt):
        one = next(typed)
        if one is KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)
        if one is EOFError:
            raise EOFError
        return one

    monkeypatch.setattr("builtins.input", read)
    with pressing(1)(run) as chat:
        command._talk(chat, ("tuned",), terminal=True)
    assert [turn["role"] for turn in chat.turns] == ["user", "assistant"]
    shown = capsys.readouterr().out
    assert shown.startswith(r"\x1b[31m")  # what could steer a terminal is shown, not sent
    assert shown.count("\n") >= 1
    assert next(typed, None) is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("_ctrl_c_is_heard")
def test_a_second_ctrl_c_ends_the_program(run, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: FIRST)
    with pressing(2)(run) as chat, pytest.raises(KeyboardInterrupt):
        command._talk(chat, ("tuned",), terminal=True)


def test_a_line_that_is_too_long_ends_a_pipe_with_an_error_once_the_others_are_answered(run, conversation, asked):
    result = typed(run, FIRST * 200, FIRST)
    assert result.exit_code == 2
    assert result.stdout == f"{printable(conversation['tuned'][0])}\n"
    assert asked[-1] == [FIRST]
    assert "line 1: " in result.stderr
    assert "1 of 2 lines" in result.stderr


def test_a_task_that_writes_nothing_is_refused():
    with raises(InputError, "'text-classification'", "ftengine predict"):
        Chat(SimpleNamespace(task=TextClassification()))


def test_without_a_template_each_line_is_continued_by_itself(build_chat_recipe, tmp_path):
    rows = [{"prompt": f"{n}, next: ", "completion": f"{n + 1}"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = fine_tune(
        build_chat_recipe(
            data__train=str(tmp_path / "rows.jsonl"),
            task={"name": "causal-lm", "chat_template": "never"},
            train__max_steps=1,
            output=str(tmp_path / "run"),
        )
    )
    result = typed(run, "4, next: ", "5, next: ")
    answers = run.predict([{"prompt": "4, next: "}, {"prompt": "5, next: "}], options={"max_new_tokens": 12})
    assert result.stdout == "".join(f"{printable(one['completion'])}\n" for one in answers)
    assert "continues each line" in result.stderr
