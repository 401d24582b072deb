"""Pictures of rows: opened from paths, bytes, data URLs and columns of data sets, and never from the network."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ftengine.api import require_inside
from ftengine.errors import DataError, shown
from ftengine_vision_language.archives import archived

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Decoders of Pillow that are used; others run programs, or are little tested."""
MOST_PIXELS = 50_000_000
"""Pixels of a picture; a larger one is refused by its header, before it is decoded."""
ALLOWED = (
    "a picture is the path of a file, its bytes, {bytes, path} as the hub's data sets have it, or a data URL "
    "(data:image/png;base64,…)"
)


def open_picture(value: Any, where: str) -> Image.Image:
    """Return a picture upright, in RGB.

    Args:
        value: a path, bytes, a 1-D tensor of bytes, {bytes, path}, a data URL or a PIL image.
        where: its place in the row, for messages.

    Raises:
        DataError: it is missing, damaged, too large, of another format, or an address of the network.
    """
    if isinstance(value, Image.Image):
        return ImageOps.exif_transpose(value).convert("RGB")
    source, name = _source(value, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(source, Path):
                source = _file(source, where)
            with Image.open(source, formats=FORMATS) as picture:
                if (pixels := picture.width * picture.height) > MOST_PIXELS:
                    raise DataError(
                        f"{where}: {name} has {pixels:,} pixels, and {MOST_PIXELS:,} are allowed. Scale it down."
                    )
                if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
                    raise DataError(f"{where}: {name} has more than 8 bits a channel. Save it with 8.")
                return ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{where}: there is no file {name}.") from None
    except DataError:
        raise
    # Decoders answer damaged files with errors of every class.
    except Exception as error:
        raise DataError(f"{where}: {name} cannot be read as a picture: {error}") from None


class LazyPictures(Sequence[Any]):
    """The pictures of a row, decoded at each access."""

    def __init__(self, values: Sequence[Any]) -> None:
        self._values = list(values)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return open_picture(self._values[index], f"picture {index + 1}")


def kept(value: Any, where: str) -> Any:
    """Return what an encoded row keeps of a picture: its path, or a tensor of a file's bytes.

    Raises:
        DataError: as of `open_picture`, but for the file's content.
    """
    import torch

    if isinstance(value, Image.Image):
        return torch.frombuffer(bytearray(_png(value)), dtype=torch.uint8)
    source, _ = _source(value, where)
    if isinstance(source, Path):
        return str(source)
    return torch.frombuffer(bytearray(source.getvalue()), dtype=torch.uint8)


def data_url(picture: Image.Image) -> str:
    """Return a picture as the data URL of a PNG, which loses nothing."""
    return f"data:image/png;base64,{base64.b64encode(_png(picture)).decode()}"


def _png(picture: Image.Image) -> bytes:
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()


def identity_of(value: Any) -> str:
    """Return a hash of a picture's file; of the value where it cannot be read."""
    try:
        source, _ = _source(kept(value, "") if isinstance(value, Image.Image) else value, "")
        source = _file(source, "") if isinstance(source, Path) else source
        content = source.read_bytes() if isinstance(source, Path) else source.getvalue()
    except (DataError, OSError):
        return shown(value)
    return blake2b(content, digest_size=16).hexdigest()


def _file(path: Path, where: str) -> Path | io.BytesIO:
    """Return a path, or the open bytes of a file in the archive that it leads through (FileNotFoundError: no file)."""
    if path.is_file():
        return path
    if (content := archived(path, where)) is None:
        raise FileNotFoundError(path)
    return io.BytesIO(content)


def _source(value: Any, where: str) -> tuple[Any, str]:
    """Return a picture's path or open bytes, and its name for messages."""
    name = "the picture"
    if isinstance(value, Mapping):
        path, data = value.get("path"), value.get("bytes")
        require_inside(value, where)
        value, name = (path if data is None else data), repr(str(path)) if path else name
    if hasattr(value, "numpy"):  # the bytes that an encoded row keeps
        value = value.numpy().tobytes()
    if isinstance(value, (bytes, bytearray)):
        return io.BytesIO(value), name
    if isinstance(value, str) and value.startswith("data:"):
        head, comma, data = value.partition(",")
        try:
            if not comma or not head.endswith(";base64"):
                raise ValueError
            return io.BytesIO(base64.b64decode(data, validate=True)), "the data URL"
        except (ValueError, binascii.Error):
            raise DataError(f"{where}: the data URL is no base64 data; {ALLOWED}.") from None
    if isinstance(value, str) and "://" in value:
        raise DataError(
            f"{where}: {shown(value)} is an address of the network, and nothing is fetched from there. Download the "
            "picture and name its file."
        )
    if isinstance(value, (str, Path)) and str(value).strip():
        return Path(value), repr(str(value))
    raise DataError(f"{where} is {shown(value)}; {ALLOWED}.")
