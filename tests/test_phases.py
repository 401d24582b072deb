"""How long each phase took is counted and kept."""

import pytest

from ftengine.api import SilentListener
from ftengine.run import phases


class Heard(SilentListener):
    def __init__(self):
        self.told = []

    def phase(self, name, total=None):
        self.told.append((name, total))

    def advance(self, steps=1, **figures):
        self.told.append((steps, figures))

    def message(self, text):
        self.told.append(text)


def test_times_of_phases_add_up_and_the_listener_hears_all(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    monkeypatch.setattr(phases.time, "monotonic", lambda: next(clock))
    heard = Heard()
    timed = phases.TimedPhases(heard)  # what is before the first phase belongs to none
    timed.phase("load", 4)
    timed.phase("train")
    timed.advance(2, loss=1.0)
    timed.message("so far so good")
    timed.phase("load")
    assert timed.seconds() == {"load": pytest.approx(2 + 4), "train": pytest.approx(3)}
    assert heard.told == [("load", 4), ("train", None), (2, {"loss": 1.0}), "so far so good", ("load", None)]
