"""Uploading an exported folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from ftengine.errors import InputError
from ftengine.run.export import MANIFEST
from ftengine.text import one_line

LEFT_OUT = (MANIFEST,)
"""It has paths of this machine; what others need of it stands in the card."""


def push(folder: str | Path, name: str) -> str:
    """Upload a folder as a model of the hub, which is made private where there is none; return its address.

    Raises:
        InputError: the hub refuses the name, the token or the files, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        made = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=made.repo_id, ignore_patterns=list(LEFT_OUT))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise InputError(
            f"{str(folder)!r} is written, and could not be pushed as {name!r}: {one_line(str(error))} Look at the name "
            "(owner/model) and the token (`hf auth login`)."
        ) from None
    return str(made)
