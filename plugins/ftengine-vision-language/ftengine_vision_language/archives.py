"""Pictures in a zip or tar beside the data, read in place: nothing is unpacked, and no name in an archive is a path."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from ftengine.errors import DataError

ENDINGS = (".zip", ".tar")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
"""Endings of tars that have to be unpacked from their beginning to reach a file."""
MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""What files by gzip, bzip2, xz and zstd begin with."""
MOST_BYTES = 200_000_000
"""Bytes of a file in an archive, unpacked: more than the largest picture has that is opened."""
MOST_MEMBERS = 5_000_000
"""Files of a tar, of which an index is kept in memory."""


def archived(path: Path, where: str) -> bytes | None:
    """Return a file in an archive that a path leads through; None where it leads through none.

    `pictures.zip/a.png` is a.png in pictures.zip. `pictures/a.png` is the same where there is no folder `pictures`:
    a.png, or pictures/a.png, in pictures.zip or else pictures.tar. `where` begins messages.

    Raises:
        DataError: the archive is damaged, or has no such file, or one that is too large or encrypted.
    """
    searched = list[str]()
    for archive, names in _places(path):
        try:
            state = archive.stat()
            content = _members(str(archive), state.st_mtime_ns, state.st_size).get(names)
        # Of damaged archives; NotImplementedError is of a compression that Python lacks, RuntimeError of encryption.
        except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
            raise DataError(f"{where}: {str(archive)!r} cannot be read as an archive: {error}") from None
        if content is not None:
            return content
        searched.append(f"{names[0]!r} in {str(archive)!r}")
    if searched:
        raise DataError(f"{where}: there is no file {' or '.join(searched)}.")
    return None


def _places(path: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield the archive that a path leads through, and the names that the file may have in it."""
    for parent in list(path.parents)[:-1]:
        rest = path.relative_to(parent).as_posix()
        if parent.name.lower().endswith(ENDINGS + COMPRESSED) and parent.is_file():
            yield parent, (rest,)
        elif parent.exists():
            return
        for ending in ENDINGS + COMPRESSED:
            for archive in (parent.with_name(parent.name + end) for end in (ending, ending.upper())):
                if archive.is_file() and not archive.is_symlink():  # which could lead out of the data's folder
                    yield archive, (rest, f"{parent.name}/{rest}")


class _Zip:
    """The files of a zip by name. It is open only while a file is read, so there may be any number of them."""

    def __init__(self, path: str) -> None:
        self._path = path
        with zipfile.ZipFile(path) as archive:
            self._infos = {_plain(info.filename): info for info in archive.infolist()}

    def get(self, names: tuple[str, ...]) -> bytes | None:
        """Return the first that there is (ValueError: it is too large)."""
        info = next((self._infos[name] for name in names if name in self._infos), None)
        if info is None:
            return None
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
            raise ValueError(f"{info.filename!r} is neither stored nor deflated. Pack it so.")
        if info.flag_bits & 1:
            raise ValueError(f"{info.filename!r} is encrypted. Pack it without a password.")
        _require_small(max(info.file_size, info.compress_size), info.filename)
        with open(self._path, "rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
            file.seek(sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28)), 1)  # name, extra field
            content = file.read(info.compress_size)
        if info.compress_type == zipfile.ZIP_DEFLATED:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, info.file_size + 1)
        if header[:4] != b"PK\x03\x04" or len(content) != info.file_size or zlib.crc32(content) != info.CRC:
            raise zipfile.BadZipFile(f"{info.filename!r} is damaged.")
        return content


class _Tar:
    """The files of a tar by name; links, devices and sparse files are left out."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._places = dict[str, tuple[int, int]]()
        with open(path, "rb") as file:
            if file.read(6).startswith(MAGIC):
                raise ValueError("it is compressed, so that no file can be read alone. Pack it as .tar or .zip.")
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg() and not member.issparse():
                    self._places[_plain(member.name)] = (member.offset_data, member.size)
                archive.members = []  # type: ignore[attr-defined]  # which would keep every header
                if len(self._places) > MOST_MEMBERS:
                    raise ValueError(f"it has more than {MOST_MEMBERS:,} files. Divide it.")

    def get(self, names: tuple[str, ...]) -> bytes | None:
        """Return the first that there is (ValueError: it is too large)."""
        name = next((name for name in names if name in self._places), None)
        if name is None:
            return None
        start, size = self._places[name]
        _require_small(size, name)
        with open(self._path, "rb") as file:
            file.seek(start)
            return file.read(size)


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _require_small(size: int, name: str) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"{name!r} has {size:,} bytes unpacked, and {MOST_BYTES:,} are allowed.")


@lru_cache(None)
def _members(path: str, changed: int, size: int) -> _Zip | _Tar:
    """Return the index of an archive. All are kept: rows in random order come from all archives of a set."""
    return _Zip(path) if path.lower().endswith(".zip") else _Tar(path)
