"""A user's Python function that scores answers: it is checked before it runs, and runs in its own process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from ftengine.errors import DataError, RecipeError, did_you_mean
from ftengine_builtins.scoring_process import Scorer, file_of, files_with, functions_in


class AnswerFunction:
    """A function that scores an answer; its further parameters name columns of the row, or arguments of `given`.

    Args:
        place: FILE.py:FUNCTION, or MODULE:FUNCTION of an installed module.
        timeout: maximal seconds for one answer.
        owner: the component that uses it, for messages, such as "evaluator 'verifier'".
        given: names of arguments that the caller supplies, so rows need no such columns.
        replies: whether it returns replies, {"reply": list of texts or None}, and no scores.
    """

    def __init__(
        self, place: str, timeout: float, owner: str, given: Mapping[str, Any] | None = None, *, replies: bool = False
    ) -> None:
        file, _, self.name = place.rpartition(":")
        self.target = f"{Path(file).resolve() if file.endswith('.py') else file}:{self.name}"
        self._timeout, self._owner, self._given, self._replies = timeout, owner, dict(given or {}), replies

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.target, self._timeout, self._replies)

    @property
    def code(self) -> Path:
        """The file that the function is written in (RecipeError: there is none)."""
        file = file_of(self.target)
        if file is None or not file.is_file():
            raise RecipeError(f"{self._owner}: there is no file {str(file or self.target)!r}.")
        return file

    def code_files(self) -> list[Path]:
        """Return the function's file and the files that it imports from the same code base."""
        return files_with(self.code, self.target)

    @cached_property
    def columns(self) -> tuple[list[str], list[str]]:
        """The function's required and optional columns (RecipeError: it cannot be called with columns)."""
        try:
            known = functions_in(self.code.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"{self._owner}: {self.code.name} cannot be read: {error}.") from None
        except (SyntaxError, ValueError) as error:
            raise RecipeError(f"{self._owner}: {self.code.name} is no Python: {error}.") from None
        if self.name not in known:
            raise RecipeError(
                f"{self._owner}: {self.code.name} has no function {self.name!r} at its top level of which all "
                "parameters behind the first can be given by name. It has "
                f"{', '.join(known) or 'none'}.{did_you_mean(self.name, known)}"
            )
        needed, optional = known[self.name]
        if not needed:
            raise RecipeError(f"{self._owner}: {self.name} must take the answer as its first parameter.")
        return [name for name in needed[1:] if name not in self._given], optional

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raise DataError if a row lacks a required column."""
        for name in (name for name in self.columns[0] if row.get(name) is None):
            raise DataError(
                f"the row has no `{name}`, which function {self.name} reads: its first parameter is the answer, "
                "each further one a column."
            )

    def start(self) -> None:
        """Start the function's process (RecipeError: its file cannot be imported)."""
        if problem := self._scorer.start():
            raise RecipeError(f"{self._owner}: {self.target} cannot be used: {problem}.")

    def score(self, answer: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return {"score": number}, {"error": message}, or {} on a timeout."""
        needed, optional = self.columns
        columns = {name: row[name] for name in (*needed, *optional) if row.get(name) is not None}
        return self._scorer.score(answer, {**columns, **self._given})


Worker, Item, Result = TypeVar("Worker"), TypeVar("Item"), TypeVar("Result")


def side_by_side(
    workers: Sequence[Worker], items: Sequence[Item], call: Callable[[Worker, Item], Result]
) -> list[Result]:
    """Return `call(worker, item)` of each item in order; each worker has one item at a time, in a thread of its own."""
    idle = SimpleQueue[Worker]()
    for worker in workers:
        idle.put(worker)

    def result(item: Item) -> Result:
        worker = idle.get()
        try:
            return call(worker, item)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        return list(pool.map(result, items))
