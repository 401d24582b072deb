"""Rules: judgements of a finished run, made from its files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from ftengine.api.component import Component
from ftengine.api.display import Finding

if TYPE_CHECKING:
    from ftengine.run.records import RunRecords


class Rule(Component):
    """Judges a finished run by its files; every installed rule judges every run, and the verdict lists what they find.

    The worst finding of kind "quality" heads the verdict; among equals, the first.
    """

    order: ClassVar[int] = 100
    """Where its findings stand among those of their level; the built-in rules are below 100."""
    reads_later_files: ClassVar[bool] = False
    """Whether it reads what may come into the run's folder after the end; `ftengine report` asks it again and says so
    if its findings have changed."""

    @abstractmethod
    def judge(self, run: RunRecords) -> Iterable[Finding]:
        """Yield findings; a function of the run's records alone."""

    def view_command(self, run: RunRecords) -> str:
        """Return a command by which people add to what the rule judges; printed at the end of `train`."""
        return ""
