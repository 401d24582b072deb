from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from partly import partly

from ftengine.api import Task, View
from ftengine.data.audit import run_audits
from ftengine.data.split import make_splits
from ftengine.plugins.registry import Registry
from ftengine.run.recipe import DataSection
from ftengine.run.records import AuditResult


@partly
class TextTask(Task):
    """Two rows are the same when their texts are."""

    name = "text"

    def view(self, row):
        return View([row["text"]])


@partly
class LabelTask(Task):
    """A text is to be given its label."""

    name = "label"

    def view(self, row):
        return View([row["text"]], row["label"], classes=True)


@partly
class RowTask(Task):
    """Two rows are the same when all of their columns are."""

    name = "row"

    def view(self, row):
        return View([], identity=dict(row))


@pytest.fixture
def row_task() -> Task:
    return RowTask()


@pytest.fixture
def text_task() -> Task:
    return TextTask()


@pytest.fixture
def label_task() -> Task:
    return LabelTask()


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry()


@pytest.fixture
def audit(registry: Registry) -> Callable[..., AuditResult]:
    """Audit data as a run does after its division, or by `only` one audit; of what the model gets there is nothing."""

    def audit(task: Task, train: str | DataSection, only: str | None = None, **options) -> AuditResult:
        section = (
            train if isinstance(train, DataSection) else DataSection(train=train, **{"validation": None, **options})
        )
        entries = [entry for entry in registry.entries("audit") if only in (None, entry.name)]
        return run_audits(make_splits(section, task, 0).audited(), {}, entries)

    return audit


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test's cache to itself; the entries lie in the folder that is returned."""
    monkeypatch.setenv("FTENGINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str | bytes], str]:
    """Write a file in the working directory and return its name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str | bytes) -> str:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return write
