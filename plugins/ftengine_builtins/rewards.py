"""Weighted rewards of answers, by user functions and built-in ones, which run in the scoring process."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ftengine.api import Config, Example
from ftengine.errors import DataError, RecipeError
from ftengine.text import counted
from ftengine_builtins import code_tests, ready_rewards
from ftengine_builtins.answer_function import AnswerFunction, side_by_side

COPIES = 50
"""Number of repetitions of an answer in the over-long test answer."""
NAMES = ("exact-match", "regex", "json-schema", "unit-tests")
"""The built-in rewards."""
READS = {"exact-match": ("completion", "wanted"), "unit-tests": ("tests", "tests")}
"""Of built-in rewards that read a column: its default name, and the function's parameter for it."""
OF_TIMEOUT = 0.8
"""Part of an answer's time that its code may take, so that code which hangs fails its tests, and its reward is 0."""
OPENED = 120.0
"""Least seconds for an answer that a model scores, the first of which opens it."""
MOST_SCORERS = 8
"""Processes that score answers side by side, unless more are asked for."""
TRIED_ROWS = 8
"""Number of rows on which rewards are tested."""


class RewardConfig(Config):
    """A reward: your own function, or a built-in one by `name`."""

    function: str | None = Field(
        None,
        pattern=r".+\.py:[A-Za-z_]\w*$",
        description="FILE.py:FUNCTION of yours, called with an answer and the row's columns that its further "
        "parameters name; it runs with your rights",
    )
    name: Literal["exact-match", "regex", "json-schema", "unit-tests"] | None = Field(
        None,
        description="a built-in reward, 1 or 0, in place of a function; unit-tests runs code that the model writes",
    )
    run: str | None = Field(
        None, min_length=1, description="folder of a run of task reward, whose scores are the reward; no function then"
    )
    weight: float = Field(1.0, description="its factor in the sum of rewards")
    column: str | None = Field(
        None,
        description="exact-match: the column with the answer that is wanted; null: completion, the row's own. "
        "unit-tests: that with the tests, a text of statements or a list of such; null: tests",
    )
    pattern: str | None = Field(None, description="regex: matches the whole answer")
    json_schema: dict[str, Any] | None = Field(None, description="json-schema: the schema")

    @model_validator(mode="after")
    def _one(self) -> RewardConfig:
        if [self.function, self.name, self.run].count(None) != 2:
            either = f"either `function`, FILE.py:FUNCTION, or `name`: {', '.join(NAMES)}; or `run`, of task reward"
            raise ValueError(f"give {either}")
        if self.name == "regex" and self.pattern is None:
            raise ValueError("regex needs `pattern`")
        if self.name == "json-schema" and self.json_schema is None:
            raise ValueError("json-schema needs `json_schema`")
        for key, owners in {"column": [*READS], "pattern": ["regex"], "json_schema": ["json-schema"]}.items():
            what = self.name or ("a run" if self.run else "a function")
            if self.name not in owners and getattr(self, key) is not None:
                raise ValueError(f"`{key}` is an option of {' and '.join(owners)}, which {what} does not read")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"`pattern` is {self.pattern!r}, no regular expression: {error}") from None
        return self

    @property
    def read(self) -> str | None:
        """The column that a built-in reward reads; None if it reads none, and for user functions."""
        return (self.column or READS[self.name][0]) if self.name in READS else None

    def arguments(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the arguments that the function may take by name, from a row's columns.

        A reward model gets `prompt` or `messages`, whatever the row's layout (DataError: it has no prompt).
        """
        if self.run:
            from ftengine_builtins.tasks.prompt_rows import without_answer

            return without_answer({name: value for name, value in columns.items() if name != "completion"})
        return {**columns, READS[self.name][1]: columns.get(self.read)} if self.read and self.name else columns

    def answer_function(self, timeout: float, owner: str) -> AnswerFunction:
        """Return the function that scores answers."""
        if self.function is not None:
            return AnswerFunction(self.function, timeout, owner)
        if self.run is not None:
            place, given = "ftengine_builtins.run_reward:run_reward", {"run": str(Path(self.run).resolve())}
            return AnswerFunction(place, max(timeout, OPENED), owner, given)
        given = {
            "regex": {"pattern": self.pattern},
            "json-schema": {"schema": self.json_schema},
            "unit-tests": {"seconds": OF_TIMEOUT * timeout},
        }.get(self.name or "")
        file = (code_tests if self.name == "unit-tests" else ready_rewards).__file__
        return AnswerFunction(f"{file}:{(self.name or '').replace('-', '_')}", timeout, owner, given)


def scorers(asked: int | None) -> int:
    """Return in how many processes answers are scored: as many as asked, else one a core, shared with other ranks."""
    cores = os.cpu_count() or 1
    return asked or max(1, min(MOST_SCORERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


@dataclass(frozen=True)
class Scored:
    """The rewards of an answer by function, and their weighted sum; None and a reason if a function failed."""

    rewards: tuple[float | None, ...]
    total: float | None
    error: str = ""


class Rewards:
    """The rewards of a recipe.

    Args:
        configs: one for each reward.
        timeout: maximal seconds of a function for one answer.
        owner: the component that uses them, for messages, such as "task 'grpo'".
        processes: number of processes for each function that score answers side by side.
    """

    def __init__(self, configs: Sequence[RewardConfig], timeout: float, owner: str, processes: int = 1) -> None:
        self.configs, self._timeout = configs, timeout
        self._owner = owner
        processes = 1 if any(config.run for config in configs) else processes  # each would hold its model
        each = [[config.answer_function(timeout, owner) for config in configs] for _ in range(processes)]
        self._functions, self._beside = each[0], each
        names = [function.name for function in self._functions]
        self.names = [name if names.count(name) == 1 else f"{name}-{i + 1}" for i, name in enumerate(names)]

    def code_files(self) -> list[Path]:
        """Return the files of the user's functions and of their imports."""
        own = zip(self._functions, self.configs, strict=True)
        return [file for function, config in own if config.function for file in function.code_files()]

    def runs_code(self) -> str | None:
        """Return the user's functions in words; None if there are none."""
        named = [config.function for config in self.configs if config.function]
        parts = [f"the {'function' if len(named) == 1 else 'functions'} {' and '.join(named)}"] if named else []
        parts += ["the code in the model's answers"] if any(one.name == "unit-tests" for one in self.configs) else []
        return " and ".join(parts) or None

    def arguments(self, row: Example, own: Mapping[str, str]) -> dict[str, Any]:
        """Return the functions' named arguments: the row's columns, and the row's own answer as `completion`."""
        return {**row, **own}

    def columns(self) -> set[str]:
        """Return the columns that functions read."""
        own = zip(self._functions, self.configs, strict=True)
        read = [({config.read},) if config.read else function.columns for function, config in own]
        return {name for names in read for some in names for name in some}

    def check_row(self, arguments: Mapping[str, Any]) -> None:
        """Raise DataError if a row lacks a column that a function requires; nothing is executed."""
        for function, config in zip(self._functions, self.configs, strict=True):
            if config.read and arguments.get(config.read) is None:
                raise DataError(f"the row has no `{config.read}`, which reward {config.name} reads.")
            function.check_row(config.arguments(arguments))

    def start(self) -> None:
        """Start the functions' processes (RecipeError: a file cannot be imported, or a run is of another task)."""
        from ftengine import load_run

        for run in (config.run for config in self.configs if config.run):
            if (task := load_run(run).recipe.task["name"]) != "reward":
                raise RecipeError(f"{self._owner}: {run!r} is a run of task {task!r}; a reward needs one of reward.")
        for function in self._functions:
            function.start()

    def score_each(self, answers: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Scored]:
        """Return the rewards of answers with their arguments, in that order."""
        return side_by_side(self._beside, answers, lambda functions, given: self._score(functions, *given))

    def score(self, answer: str, arguments: Mapping[str, Any]) -> Scored:
        """Return the rewards of an answer."""
        return self._score(self._functions, answer, arguments)

    def _score(self, functions: Sequence[AnswerFunction], answer: str, arguments: Mapping[str, Any]) -> Scored:
        rewards, error = list[float | None](), ""
        for function, config in zip(functions, self.configs, strict=True):
            result = function.score(answer, config.arguments(arguments))
            rewards.append(result.get("score"))
            if "score" not in result and not error:
                error = f"{function.name}: {result.get('error', f'it took longer than {self._timeout:g} s')}"
        if error:
            return Scored(tuple(rewards), None, error)
        weights = [config.weight for config in self.configs]
        return Scored(tuple(rewards), sum(w * r for w, r in zip(weights, rewards, strict=True) if r is not None))

    def faults(self, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
        """Yield warnings about functions that reward useless answers: empty ones, copies of the prompt, over-long ones.

        If a row has its own answer, useless answers must get a lower reward than it; otherwise at most 0.

        Args:
            rows: (prompt, arguments) of each row.
        """
        paid, errors, asked = dict[str, int](), list[str](), rows[:TRIED_ROWS]
        for prompt, arguments in asked:
            own = str(arguments.get("completion") or "")
            answers = {"an empty answer": "", "the prompt as an answer": prompt}
            answers["its answer written over and over"] = " ".join([own or prompt] * COPIES)
            wanted = self.score(own, arguments) if own else None
            errors += [wanted.error] if wanted is not None and wanted.error else []
            for what, answer in answers.items():
                result = self.score(answer, arguments)
                errors += [result.error] if result.error else []
                if result.total is None:
                    continue
                least = None if wanted is None else wanted.total
                paid[what] = paid.get(what, 0) + (result.total > 0 if least is None else result.total >= least)
        for what, times in paid.items():
            if 2 * times > len(asked):
                yield (
                    f"the reward pays for {what}, in {times} of {counted(len(asked), 'row')} tried: the model will "
                    "find that. Give less for it"
                )
        if errors:
            yield f"a reward function fails: {errors[0]}. Such answers have no reward and teach nothing"
