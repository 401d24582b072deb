"""The harness's tasks by name, and user tasks from YAML files, of which no code is executed."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from ftengine.errors import DataError, InputError, did_you_mean, load_yaml, naming

SUFFIXES = (".yaml", ".yml")

BUILDERS = ("arrow", "csv", "json", "parquet", "text")
"""What `dataset_path` may name beside a data set of the hub: readers of `datasets` that execute nothing."""

GENERATION = (
    "do_sample", "max_gen_toks", "max_new_tokens", "num_beams", "repetition_penalty", "temperature", "top_k", "top_p",
    "until",
)  # fmt: skip
"""Options of answers; others of transformers' `generate` can fetch code."""

LEFT_OUT = ("class", "custom_dataset", "use_prompt", "unsafe_code", "doc_to_image", "doc_to_audio")
"""Keys of the harness's task files that name code, other packages' prompts, or what a language model does not read."""


def is_file(name: str) -> bool:
    """Return whether a task is given as a file or folder."""
    return name.endswith(SUFFIXES) or os.sep in name or Path(name).is_dir()


def check_names(names: Sequence[str]) -> None:
    """Refuse tasks that do not exist, and files that cannot be used (InputError); no data is read."""
    for name in names:
        if is_file(name):
            own_tasks(name)
        elif name not in (known := manager().all_tasks):
            raise InputError(
                f"lm-evaluation-harness has no task {name!r}.{did_you_mean(name, known)} It has {len(known):,} tasks; "
                "`lm-eval ls tasks` lists them. A task of your own is named by its file, for example tasks/mine.yaml."
            )


@cache
def manager() -> Any:
    """Return the harness's task manager; listing its tasks takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """Load tasks with their data, as `lm_eval.evaluate` takes them.

    Raises:
        InputError: a task does not exist, or its file cannot be used.
        DataError: the data of a task cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    check_names(names)
    specs = [spec for name in names for spec in (own_tasks(name) if is_file(name) else [name])]
    own = all(isinstance(spec, dict) for spec in specs)
    known = TaskManager(include_defaults=False) if own else manager()
    try:
        with contained():
            return dict(known.load(specs))
    except Exception as error:  # whatever the harness and `datasets` raise over data
        raise DataError(
            f"lm-eval: {', '.join(names)} cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())}. "
            "Look at the task's data; that of the hub needs a connection."
        ) from error


@contextmanager
def contained() -> Iterator[None]:
    """Within the block, render templates in Jinja's sandbox, so that they execute no Python, and silence the harness.

    Its progress bars are shown only on terminals.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils

    plain, log = utils.env, logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    utils.env = ImmutableSandboxedEnvironment(
        loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    utils.env.filters.update(plain.filters)
    try:
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO()):
            yield
    finally:
        utils.env = plain
        log.setLevel(level)


def own_tasks(place: str) -> list[dict[str, Any]]:
    """Read the tasks in a YAML file, or in all YAML files of a folder by name.

    Raises:
        InputError: there is no task, or one names code, unknown keys, or missing data.
    """
    path = Path(place)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
    if not files:
        raise InputError(f"lm-eval: {place!r} is neither a task file (.yaml) nor a folder with such files.")
    contents = [(file, read_yaml(file)) for file in files]
    tasks = [(file, content) for file, content in contents if "task" in content]
    if not tasks:
        raise InputError(f"lm-eval: no file of {place!r} has the key 'task', the task's name.")
    for file, content in tasks:
        with naming(str(file)):
            check_task(content, file.parent)
    return [content for _, content in tasks]


def read_yaml(file: Path, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a task file with its includes; the file's own keys override included ones.

    Raises:
        InputError: it is not a YAML mapping, or names Python code (`!function`).
    """
    try:
        content = load_yaml(file.read_text(encoding="utf-8"))
    except yaml.constructor.ConstructorError as error:
        if "!function" not in str(error):
            raise InputError(f"{file}: {' '.join(str(error).split())}") from None
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(
            f"{file}{line}: !function names Python code, and nothing of a task file is executed. Write it as a "
            "template, or prepare the data so that none is needed."
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: a task is a mapping of keys, not {type(content).__name__}.")
    included = content.pop("include", [])
    for name in [included] if isinstance(included, str) else included:
        other = file.parent / name
        if other in (file, *including):
            raise InputError(f"{file}: includes itself by way of {name!r}.")
        content = {**read_yaml(other, (file, *including)), **content}
    return content


def check_task(content: dict[str, Any], folder: Path) -> None:
    """Refuse a task that the harness does not support, or that makes it execute code (InputError).

    Data files are searched for beside the task file first; the content's paths are replaced by the files that were
    found.
    """
    from dataclasses import fields

    from lm_eval.api.registry import metric_registry
    from lm_eval.config.task import TaskConfig
    import lm_eval.api.metrics  # isort: skip  # noqa: F401 (fills the registry)

    if not isinstance(content["task"], str):
        raise InputError("groups are not read from files; name the folder of their tasks instead.")
    known = {field.name for field in fields(TaskConfig)} - set(LEFT_OUT)
    for key in content.keys() - known - {"tag"}:
        problem = "cannot be used here" if key in LEFT_OUT else "is not a key of the harness's tasks"
        raise InputError(f"{key!r} {problem}.{did_you_mean(key, known)} Allowed: {', '.join(sorted(known))}.")
    for metric in content.get("metric_list") or []:
        name = metric.get("metric") if isinstance(metric, dict) else None
        if not isinstance(name, str) or name not in metric_registry or metric.get("hf_evaluate"):
            raise InputError(
                f"metric_list: {name!r} is not a metric of the harness itself; other ones are code from the hub. There "
                f"are {', '.join(sorted(metric_registry))}."
            )
    for key in (content.get("generation_kwargs") or {}).keys() - set(GENERATION):
        raise InputError(f"generation_kwargs: {key!r} cannot be used here. Allowed: {', '.join(GENERATION)}.")
    _check_data(content, folder)


def _check_data(content: dict[str, Any], folder: Path) -> None:
    source = content.get("dataset_path")
    hub = isinstance(source, str) and source.count("/") == 1 and not (Path(source).exists() or source.startswith("."))
    if source not in BUILDERS and not hub:
        raise InputError(
            f"dataset_path {source!r} cannot be used here. Take {', '.join(BUILDERS)} with dataset_kwargs.data_files, "
            "or a data set of the hub (owner/name)."
        )
    options = dict(content.get("dataset_kwargs") or {})
    for key in options.keys() - {"data_files", "data_dir", "revision", "split", "trust_remote_code"}:
        raise InputError(f"dataset_kwargs: {key!r} cannot be used here. Allowed: data_files, data_dir, revision.")
    options.pop("trust_remote_code", None)
    for key in ("data_files", "data_dir"):
        if key in options and not hub:
            options[key] = _found(options[key], folder)
    content["dataset_kwargs"] = options


def _found(files: Any, folder: Path) -> Any:
    """Return paths as they are found from here: beside the task file, else from the working directory."""
    if isinstance(files, dict):
        return {split: _found(inner, folder) for split, inner in files.items()}
    if isinstance(files, list):
        return [_found(inner, folder) for inner in files]
    places: Iterator[Path] = (place for place in (folder / str(files), Path(str(files))) if place.exists())
    place = next(places, None)
    if place is None:
        raise InputError(f"dataset_kwargs: there is no {str(files)!r}, neither beside the task's file nor from here.")
    return str(place.resolve())
