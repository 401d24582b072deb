"""A run that is lost while it trains."""

from __future__ import annotations

from ftengine.api import SilentListener


class Interruption(Exception):
    pass


class Interrupting(SilentListener):
    """Stops a run after some training steps, as a lost machine would."""

    def __init__(self, steps: int) -> None:
        self.left, self.training = steps, False

    def phase(self, name: str, total: int | None = None) -> None:
        self.training = name == "train"

    def advance(self, steps: int = 1, **figures: float) -> None:
        if self.training:
            self.left -= steps
            if self.left < 0:
                raise Interruption
