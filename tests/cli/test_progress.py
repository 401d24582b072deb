"""Progress: a bar for what takes long on a terminal, a few lines in a log."""

import io

import pytest
from rich.console import Console

from ftengine.api import SilentListener
from ftengine.run import progress
from ftengine.run.progress import LineListener, listening, terminal_listener


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def train(listener, clock, steps, seconds_a_step):
    listener.phase("train", steps)
    listener.advance(0)
    for step in range(steps):
        clock.now += seconds_a_step
        listener.advance(loss=2.5 - step / steps, learning_rate=2e-4, examples=8, tokens=100, memory=3 << 29)


def test_a_log_gets_a_line_about_every_tenth_of_what_takes_long(clock, capsys):
    train(LineListener(), clock, 200, 1.0)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "train: 200"
    assert len(lines) == 11
    figures = "loss 2.405, learning rate 0.0002, 8 examples/s, 100 tokens/s, 1.5 GiB at the peak"
    assert lines[1] == f"train 20/200, 3 min 0 s left, {figures}"
    assert lines[-1].startswith("train 200/200, loss")


def test_a_log_of_few_long_steps_gets_no_line_a_step(clock, capsys):
    train(LineListener(), clock, 9, 3.0)
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "train: 9",
        "train 4/9",
        "train 8/9",
    ]


@pytest.mark.parametrize("delay", [0.0, 1000.0])
def test_a_terminal_gets_a_bar_only_for_what_takes_long(monkeypatch, delay):
    monkeypatch.setattr(progress, "DELAY", delay)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with terminal_listener(console) as listener:
        listener.phase("read [bold]data")
        listener.phase("train", 4)
        listener.advance(2, loss=2.5)
        listener._bars.refresh()
        listener.message("step 2: [red]loss\x1b[2J")
    shown = screen.getvalue()
    assert "step 2: [red]loss\\x1b[2J" in shown
    assert ("2/4" in shown) == (delay == 0)
    assert ("read [bold]data: 0.0 s" in shown) == (delay == 0)
    assert shown.endswith("\x1b[?25h") or "\x1b[?25h" in shown  # the cursor is back


def test_only_the_main_process_talks(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with listening() as listener:
        assert isinstance(listener, SilentListener)
