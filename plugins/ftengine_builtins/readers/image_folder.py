"""A folder of images as rows; the label of an image is the name of its subfolder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ftengine.api import BrokenRow, Reader, Row
from ftengine.text import counted

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of images."""

LITTER = frozenset({"thumbs.db", "desktop.ini"})
"""Files of file managers, which are ignored like hidden files."""


class ImageFolderReader(Reader):
    """Folders of images: columns "image", a path, and "label", the subfolder's name.

    Images lie in the subfolders at any depth. Without subfolders, those in the folder itself have no label.
    """

    name = "image-folder"

    def accepts(self, source: str) -> bool:
        return os.path.isdir(source)

    def read(self, source: str) -> Iterator[Row | BrokenRow]:
        images, others = _listed(Path(source))
        for name in others:
            yield BrokenRow(f"/{name}", "not an image, by its suffix")
        for name, label in images:
            yield Row(f"/{name}", {"image": name} if label is None else {"image": name, "label": label})


def _listed(folder: Path) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Return the images of a folder as (relative path, label), and the paths of other files.

    Raises:
        BrokenRow: there are no images, or some beside the subfolders, which would have no label.
    """
    try:
        files = [(path.relative_to(folder).as_posix(), label) for path, label in _labelled(folder)]
    except OSError as error:  # no permission, or circular links
        raise BrokenRow("", f"cannot be listed: {error.strerror} ({error.filename!r})") from None
    images = [(name, label) for name, label in files if name.lower().endswith(IMAGES)]
    others = [name for name, _ in files if not name.lower().endswith(IMAGES)]
    if not images:
        reason = f"holds no images ({' '.join(IMAGES)}){f'; its first file is {others[0]!r}' if others else ''}. "
        reason += "A folder is data where it has a subfolder of images for each label; name a file otherwise (of a "
        raise BrokenRow("", reason + "saved data set, its .arrow file)")
    loose = [name for name, label in images if label is None]
    if loose and len(loose) < len(images):
        reason = f"has {counted(len(loose), 'image')} beside its subfolders, {loose[0]!r} first, without a label. "
        raise BrokenRow("", reason + "Move such images into the subfolder of their label")
    return images, others


def visible(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder by name, without hidden files and those of file managers."""
    with os.scandir(folder) as entries:
        shown = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in LITTER]
    return sorted(shown, key=lambda entry: entry.name)


def _labelled(folder: Path, label: str | None = None) -> Iterator[tuple[Path, str | None]]:
    """Yield the files of a folder by name, each with `label`, or else the name of its subfolder."""
    for entry in visible(folder):
        if entry.is_dir():
            yield from _labelled(Path(entry.path), label or entry.name)
        else:
            yield Path(entry.path), label
