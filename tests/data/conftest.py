from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ftengine.api import Task, View


class RowTask(Task):
    """Two rows are the same when all of their columns are."""

    name = "row"

    def view(self, row):
        return View((), identity=dict(row))


class TextTask(Task):
    """Two rows are the same when their texts are."""

    name = "text"

    def view(self, row):
        texts = [value for value in row.values() if isinstance(value, str)]
        return View((), texts=texts, identity=row["text"])


class LabelTask(TextTask):
    """A text is to be given its label."""

    name = "label"

    def view(self, row):
        return View([row["text"]], row["label"], classes=True)


@pytest.fixture
def row_task() -> Task:
    return RowTask()


@pytest.fixture
def text_task() -> Task:
    return TextTask()


@pytest.fixture
def label_task() -> Task:
    return LabelTask()


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
