"""The cache of parsed files: private, checked, bounded."""

import json
import os
import stat
import time
from pathlib import Path

import pytest
from expected import raises
from installed import registry_with

from ftengine.api import FileReader, Row
from ftengine.data.read import read_rows
from ftengine.errors import DataError, InputError
from ftengine.identity import cache


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(3)))
    return file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FTENGINE_CACHE", str(tmp_path / "own"))
    return tmp_path / "own" / "data"


def read(file):
    return [row["text"] for row in read_rows(str(file))]


def entry_of(folder) -> Path:
    (entry,) = folder.iterdir()
    return entry


def test_only_its_user_sees_the_cache(source, folder):
    folder.mkdir(parents=True, mode=0o755)
    read(source)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_another_users_cache_is_refused(source, folder, monkeypatch):
    folder.mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with raises(DataError, "FTENGINE_CACHE"):
        read(source)


@pytest.mark.parametrize("spoilt", ["rows cut", "rows changed", "rows missing", "facts cut", "facts empty"])
def test_what_is_damaged_is_made_anew(source, folder, spoilt):
    expected = read(source)
    rows, facts = entry_of(folder) / "rows.arrow", entry_of(folder) / "facts.json"
    if spoilt == "rows cut":
        rows.write_bytes(rows.read_bytes()[:-50])
    elif spoilt == "rows changed":
        rows.write_bytes(rows.read_bytes().replace(b"row 1", b"row 9"))
    elif spoilt == "rows missing":
        rows.unlink()
    else:
        facts.write_text(facts.read_text()[:20] if spoilt == "facts cut" else "{}")
    assert read(source) == expected == ["row 0", "row 1", "row 2"]
    assert cache.is_whole(entry_of(folder))


def test_what_was_used_longest_ago_goes_first(source, folder, monkeypatch):
    files = []
    for i in range(3):
        files.append(source.with_name(f"{i}.jsonl"))
        files[i].write_text(source.read_text() * (i + 1))
        read(files[i])
    by_size = {size: entry for entry, _, size in cache.entries(folder)}
    first, second, third = (by_size[size] for size in sorted(by_size))
    for entry, age in ((first, 7200), (second, 9000), (third, 60)):
        os.utime(entry, (time.time() - age,) * 2)
    read(files[0])  # used again, so the second is now the oldest
    (left := folder / "killed.tmp").mkdir()
    os.utime(left, (1, 1))
    monkeypatch.setenv("FTENGINE_CACHE_SIZE", "1KB")
    new = source.with_name("new.jsonl")
    new.write_text(source.read_text() * 9)
    read(new)
    assert not second.exists()
    assert not left.exists()
    assert first.exists()  # used within the last hour, as the third: another process may be opening them
    assert third.exists()


@pytest.mark.parametrize(("text", "size"), [("5GB", 5e9), ("1.5 mb", 1.5e6), ("1000", 1000), ("", 20e9)])
def test_sizes_are_written_as_people_write_them(monkeypatch, text, size):
    monkeypatch.setenv("FTENGINE_CACHE_SIZE", text)
    assert cache.wanted_size() == size


@pytest.mark.parametrize("text", ["many", "5XB", "-5GB"])
def test_what_is_no_size_is_refused(source, folder, monkeypatch, text):
    monkeypatch.setenv("FTENGINE_CACHE_SIZE", text)
    with raises(InputError, f"FTENGINE_CACHE_SIZE={text}"):
        read(source)


class Suffixed(FileReader):
    """Reads lines, each with what the environment says behind it."""

    name = "suffixed"
    suffixes = (".suffixed",)

    def read(self, source):
        for number, line in enumerate(Path(source).read_text().splitlines(), 1):
            yield Row(number, {"text": line + os.environ["SUFFIX"]})


def test_rows_of_a_reader_of_other_code_are_read_anew_and_go_with_the_process(tmp_path, folder, monkeypatch):
    """What it reads beside the file, the environment here, is not known."""

    registry, file = registry_with(Suffixed), tmp_path / "rows.suffixed"
    file.write_text("a\nb\n")
    passing = []
    monkeypatch.setattr(cache, "_temporary", passing)
    for suffix in "xy":
        monkeypatch.setenv("SUFFIX", suffix)
        rows = read_rows(str(file), registry=registry)
        assert [row["text"] for row in rows] == [f"a{suffix}", f"b{suffix}"]
    assert len(passing) == len(list(folder.iterdir())) == 2
    assert cache.usage()["entries"] == 0
    passing.clear()  # as the end of the process does
    assert list(folder.iterdir()) == []
    assert rows[1]["text"] == "by"
