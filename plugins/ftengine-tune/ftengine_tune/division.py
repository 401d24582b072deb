"""The recipe's splits as separate files, so that no trial reads the test split, and the trials' recipes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ftengine import Recipe, hookimpl, plan, registry_of
from ftengine.api import Labels, Task
from ftengine.errors import InputError

FOLDER = "division"
NAME = "ftengine-tune-division"


class _Divided(Exception):
    """The rows are written."""


def divide(recipe: Recipe, folder: Path) -> dict[str, Path]:
    """Write the rows of a recipe's splits to files, and return these.

    A task is shown the rows of all splits when it learns its labels (`Task.bind`), which is where they are taken from.
    The files have the columns that the task expects, and absolute paths.

    Raises:
        InputError: rows hold values that JSON cannot, such as the images of a folder.
    """
    files: dict[str, Path] = {}
    cls = registry_of().get("task", recipe.task["name"], "task").cls
    written_by = registry_of().build("task", opening_all_files(recipe), "task")

    class Dividing(cls):  # type: ignore[misc,valid-type]
        """Writes the rows that it sees."""

        name = NAME

        def learn_labels(self, splits: Mapping[str, Any]) -> Labels | None:
            folder.mkdir(parents=True, exist_ok=True)
            for name, rows in splits.items():
                files[name] = folder / f"{name}.jsonl"
                _write(files[name], rows, written_by)
            raise _Divided

    hooks = SimpleNamespace(ftengine_tasks=hookimpl(lambda: [Dividing]))
    content = recipe.resolved()
    content["task"] = {**content["task"], "name": NAME}
    with suppress(_Divided):
        plan(Recipe.make(content), measure=False, registry=registry_of({NAME: hooks}))
    return files


def opening_all_files(recipe: Recipe) -> dict[str, Any]:
    """Return the task's options, with files outside of the data's folder, as the rows' new one is."""
    options = registry_of().get("task", recipe.task["name"], "task").cls.Config.model_fields
    return {**recipe.task, **({"outside_files": True} if "outside_files" in options else {})}


def _write(file: Path, rows: Any, task: Task) -> None:
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("w", encoding="utf-8") as out:
        for row in rows:
            try:
                line = json.dumps(task.in_folder(row, str(Path.cwd())), ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"ftengine tune keeps the splits as lines of JSON, and a row cannot be such a line ({error}). "
                    "Give the data as .jsonl or .csv, with paths of files."
                ) from None
            out.write(f"{line}\n")
    partial.replace(file)


def trial_recipe(recipe: Recipe, files: Mapping[str, Path], output: Path) -> Recipe:
    """Return a trial's recipe, which trains on the training rows and is measured only on validation.

    The recipe's other measurements are left out; the best trial's recipe has them again.

    Args:
        recipe: with the trial's values.
        files: of the splits, as from `divide`.
        output: the trial's folder.
    """
    content = recipe.resolved()
    content["data"] |= {"train": str(files["train"]), "validation": str(files["validation"]), "test": None}
    content["data"] |= {"reader": {"name": "auto"}, "columns": {}, "split": {"by": "random"}, "exclude": None}
    content["data"]["group"] = recipe.data.group_column
    content["data"]["leaks"] = "warn"  # what the recipe refuses, `plan` has refused
    nothing = dict.fromkeys(("training_sample", "forgetting", "memorisation", "refusal", "answers"))
    content["task"] = opening_all_files(recipe)
    content["evaluation"] |= {**nothing, "slices": [], "robustness": []}
    content["output"] = str(output)
    return Recipe.make(content)
