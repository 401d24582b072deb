"""Reading of images in rows, from paths or bytes to pixels; errors name the file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ftengine.api import require_inside
from ftengine.errors import DataError, InputError, shown

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Decoders of Pillow that are used. Others run programs (EPS starts Ghostscript), or are little tested."""

CHUNK = 1 << 20
"""Bytes that are hashed at a time."""

ALLOWED = "it must be the path of an image, an image's bytes, or {bytes, path} as the hub's data sets have it"


def read_image(value: Any, column: str, mode: str = "RGB") -> Any:
    """Return a row's image (a path, bytes, {bytes, path}, or a PIL image) as a PIL image, upright.

    A missing, truncated or other file is refused (DataError, naming the file in `column`), and any image without Pillow
    (InputError). `mode` is "RGB", or "L" for models of one channel.
    """
    from PIL import ImageOps

    with _opened(value, column) as image:
        return _eight_bit(ImageOps.exif_transpose(image)).convert(mode)


class LazyImage(Sequence[Any]):
    """A sequence of one image, which is decoded (`read_image`) at each access."""

    def __init__(self, value: Any, column: str) -> None:
        self._value, self._column = value, column

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        if index not in (0, -1):
            raise IndexError(index)
        return read_image(self._value, self._column)


def check_image(value: Any, column: str) -> None:
    """Check that an image exists and has a supported format, from its header only (errors as in `read_image`)."""
    with _opened(value, column):
        pass


@contextmanager
def _opened(value: Any, column: str) -> Iterator[Any]:
    try:
        from PIL import Image
    except ImportError:
        raise InputError("reading images needs Pillow, which is not installed: pip install pillow.") from None
    file, name = (None, "the image") if isinstance(value, Image.Image) else _source(value, column)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # a small file, gigabytes of pixels
            if file is None:
                yield value
                return
            if isinstance(file, Path):
                _require_regular(file)
            with Image.open(file, formats=FORMATS) as image:
                yield image
    except FileNotFoundError:
        raise DataError(f"`{column}`: there is no file {name}.") from None
    # Decoders answer damaged files with errors of every class; each means that this image cannot be read.
    except Exception as error:
        from ftengine_builtins.loaders.quiet import cause

        raise DataError(f"`{column}`: {name} is not an image that can be read: {cause(error)}") from None


def image_identity(value: Any) -> Any:
    """Return a hash of an image's bytes; if they cannot be read, of the value."""
    try:
        file, _ = _source(value, "")
        if isinstance(file, Path):
            _require_regular(file)
        hashed = blake2b(digest_size=16)
        with file.open("rb") if isinstance(file, Path) else file as content:
            while chunk := content.read(CHUNK):
                hashed.update(chunk)
    except (DataError, OSError, ValueError):
        return shown(value)
    return hashed.hexdigest()


def place_of(value: Any) -> str:
    """Return the name of an image for messages: its path, if it has one."""
    path = value.get("path") if isinstance(value, Mapping) else value
    return str(path) if isinstance(path, (str, Path)) and path else "image"


def _source(value: Any, column: str) -> tuple[Any, str]:
    """Return an image's path or open bytes, and its name."""
    name = "the image"
    require_inside(value, f"`{column}`")
    if isinstance(value, Mapping):
        value, path = value.get("bytes"), value.get("path")
        value = path if value is None else value
        name = repr(str(path)) if path else name
    if isinstance(value, bytes):
        return io.BytesIO(value), name
    if isinstance(value, (str, Path)) and str(value).strip():
        return Path(value), repr(str(value))
    raise DataError(f"`{column}` is {shown(value)}; {ALLOWED}.")


def _require_regular(file: Path) -> None:
    """Refuse (OSError) a device or pipe, which may have no end or never answer."""
    if file.is_dir():
        raise IsADirectoryError("it is a folder")
    if file.exists() and not file.is_file():
        raise OSError("it is a device or a pipe, no regular file")


def _eight_bit(image: Any) -> Any:
    """Scale 16-bit grey to 8 bits, as `convert` would clip values above 255 (ValueError: the range is unknown)."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        import numpy as np

        return Image.fromarray((np.asarray(image).astype("uint16") >> 8).astype("uint8"))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) of unknown range; save it with 8 bits")
    return image
