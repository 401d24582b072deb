"""Uploading an exported folder to the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ftengine.errors import InputError
from ftengine.run.export import MANIFEST
from ftengine.text import one_line

LEFT_OUT = (MANIFEST,)
"""It has paths of this machine; what others need of it stands in the card."""
TEXT = (".json", ".md", ".jinja", ".txt", ".yaml", "")
"""Ends of the names of files that may have paths in them."""


def require_access(name: str) -> None:
    """Check the repository's name and the token before anything is uploaded (InputError)."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    with _asking(f"{name!r} cannot be pushed to"):
        validate_repo_id(name)
        HfApi().whoami()


def push(folder: str | Path, name: str, private: Iterable[str | Path] = ()) -> str:
    """Upload a folder as a model of the hub and return its address; a new repository is private.

    Args:
        private: paths of this machine; only their last part is uploaded.

    Raises:
        InputError: the hub refuses the name, the token or the files, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api, root = HfApi(), Path(folder)
    files = sorted(file for file in root.rglob("*") if file.is_file())
    sent = {file.relative_to(root).as_posix(): without_paths(file, private) for file in files}
    adding = [CommitOperationAdd(place, file) for place, file in sent.items() if place not in LEFT_OUT]
    again = f"hf upload {name} {folder} . --exclude {MANIFEST}"
    with _asking(f"{str(folder)!r} is written, and could not be pushed as {name!r} (`{again}` does, paths and all)"):
        made = api.create_repo(name, private=True, exist_ok=True)
        api.create_commit(made.repo_id, adding, commit_message="Model exported by ftengine")
    return str(made)


def without_paths(file: Path, private: Iterable[str | Path]) -> str | bytes:
    """Return a file's path, or its content with private paths shortened to their last part, if it has any."""
    if file.suffix not in TEXT:
        return str(file)
    content = before = file.read_bytes()
    paths = {str(form) for path in private if Path(path).exists() for form in (path, Path(path).resolve())}
    for path in sorted(paths, key=len, reverse=True):
        for form in (path, json.dumps(path)[1:-1]):
            content = content.replace(form.encode(), Path(path).name.encode())
    return str(file) if content == before else content


@contextmanager
def _asking(failing: str) -> Iterator[None]:
    """Turn errors of the hub and of the connection into InputError."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except Exception as error:
        # Its client's own errors of a connection are of no class that huggingface_hub names.
        hub_errors = (HfHubHTTPError, HFValidationError, OSError, ValueError)
        if not isinstance(error, hub_errors) and not type(error).__module__.startswith("httpx"):
            raise
        raise InputError(
            f"{failing}: {one_line(str(error))} Look at the name (owner/model) and the token (`hf auth login`)."
        ) from None
