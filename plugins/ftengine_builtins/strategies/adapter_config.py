"""adapter_config.json, which PEFT and AdapterHub both write, and checking options against it.

What the library that reads such a file cannot run is written under ftengine's own file names, so that no other program
opens it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ftengine.errors import BaseMismatch, RecipeError, RunError, json_of_file, naming
from ftengine.identity import require_same_base

if TYPE_CHECKING:
    from typing_extensions import Self

    from ftengine.api import LoadedModel

CONFIG_FILE = "adapter_config.json"
FACTS_FILE = "ftengine.json"
"""What a run writes beside an adapter of its own."""
OWN_CONFIG_FILE = "trained_config.json"
"""Takes the place of adapter_config.json where only ftengine runs the weights, which are `trained.safetensors`."""


def is_own(directory: Path) -> bool:
    """Return whether only ftengine can run the adapter in a folder."""
    return (directory / OWN_CONFIG_FILE).exists() and not (directory / CONFIG_FILE).exists()


def read_content(directory: Path, kind: str) -> tuple[Any, Path]:
    """Return the content of adapter_config.json, and its path (RunError: it cannot be read as one of a `kind`)."""
    file = directory / (OWN_CONFIG_FILE if is_own(directory) else CONFIG_FILE)
    try:
        return json_of_file(file), file
    except FileNotFoundError:
        inner = sorted(str(path.parent) for path in directory.glob(f"*/{CONFIG_FILE}"))
        hint = f" Did you mean {' or '.join(map(repr, inner[:3]))}?" if inner else ""
        raise RunError(f"no {CONFIG_FILE} in {str(directory)!r}; a folder of {kind} adapter has one.{hint}") from None
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {str(file)!r}: {error}. It must be the JSON file of {kind} adapter.") from None


class AdapterFile(BaseModel):
    """The content of an adapter_config.json; fields are the recipe's, with the library's names as aliases."""

    model_config = ConfigDict(frozen=True, strict=True, populate_by_name=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, content: Mapping[str, Any], file: Path, library: str) -> Self:
        """Return a file's content (RunError: a value is missing or not of the form that `library` writes)."""
        try:
            return cls.model_validate({key: value for key, value in content.items() if value is not None})
        except ValidationError as error:
            keys = dict.fromkeys(str(item["loc"][0]) for item in error.errors())
            wrong = ", ".join(f"{key}={content.get(key)!r}" for key in keys)
            raise RunError(f"{str(file)!r}: no usable value for {wrong}; it must be as {library} wrote it.") from None


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping with sorted keys (RunError); nested keys keep their order: the first matching pattern counts."""
    try:
        file.write_text(json.dumps(dict(sorted(content.items())), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write {str(file)!r}: {error}. Free some space or choose another output.") from None


def refuse_unsupported(used: Mapping[str, Any], file: Path, advice: str) -> None:
    """Raise RunError if a file uses options that ftengine does not support."""
    if used:
        shown = ", ".join(f"{key}={value!r}" for key, value in sorted(used.items()))
        raise RunError(f"{str(file)!r} uses what ftengine does not have: {shown}. {advice}")


def follow(config: Any, read: Callable[[Path], Any], keys: Iterable[str]) -> None:
    """Take options from the adapter in `strategy.start_from`, if any, and its dropout unless the recipe sets one.

    A recipe that sets one of `keys` to another value is refused (RecipeError).
    """
    given, folder = config.model_fields_set.copy(), config.start_from
    if folder is None:
        return
    with naming("strategy.start_from"):
        adapter = read(Path(folder))
    for key in keys:
        ours, theirs = getattr(config, key), getattr(adapter, key)
        if key in given and ours is not None and _comparable(ours) != _comparable(theirs):
            raise RecipeError(
                f"strategy.{key} is {ours!r}, but the adapter in strategy.start_from ({folder!r}) has {theirs!r}. "
                f"Leave {key} out, or start without that adapter."
            )
        setattr(config, key, theirs)
    if hasattr(config, "dropout") and "dropout" not in given:
        config.dropout = adapter.dropout


def require_base_of(directory: Path, loaded: LoadedModel) -> None:
    """Refuse to start from an adapter that a run trained on another base (BaseMismatch: names the difference).

    Chat template and generation settings may differ. Weights are compared if the head is the same, since loaders order
    a head's outputs by labels. Folders of other programs do not record their base.
    """
    file = directory / FACTS_FILE
    if not file.exists():
        return
    facts = json_of_record(file)
    base, labels = facts.get("base"), facts.get("labels")
    if not isinstance(base, Mapping):
        raise RunError(f"{str(file)!r} does not say which base the adapter was trained on; it is damaged.")
    own = None if loaded.labels is None else json.loads(json.dumps(asdict(loaded.labels)))
    same_head = base.get("head") == loaded.head and labels == own
    leave_out = ("processor", "generation", *(() if same_head else ("weights", "buffers")))
    require_same_base(loaded.fingerprint, base, loaded.source, f"the adapter in {str(directory)!r}", leave_out)


def json_of_record(file: Path) -> Mapping[str, Any]:
    """Read a JSON object (RunError: it is none)."""
    try:
        content = json_of_file(file)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {str(file)!r}: {error}.") from None
    if not isinstance(content, Mapping):
        raise RunError(f"{str(file)!r} holds a {type(content).__name__}; it must be a JSON object.")
    return content


def _comparable(value: object) -> object:
    return sorted(value) if isinstance(value, list) else value


def require_same(expected: Any, adapter: Any, keys: Iterable[str], directory: Path) -> None:
    """Refuse an adapter that differs from the prepared model in one of `keys` (BaseMismatch)."""
    for key in keys:
        ours, theirs = getattr(expected, key), getattr(adapter, key)
        if ours != theirs:
            raise BaseMismatch(
                f"the adapter in {str(directory)!r} was trained with {key} {theirs!r}; this model is prepared for "
                f"{key} {ours!r}. Set strategy.{key}={theirs!r}, or choose the adapter that belongs here."
            )
