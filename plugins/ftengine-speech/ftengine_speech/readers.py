"""Readers of speech as people keep it: NeMo's manifests, Common Voice, LJSpeech, folders of files with transcripts."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftengine.api import BrokenRow, Reader, ReaderTraits, Row
from ftengine_speech.rows import SUFFIXES

MANIFEST, CLIPS = "audio_filepath", "clips"
LONGEST_LINE = 1 << 20


class NemoReader(Reader):
    """NeMo's manifests: a JSON object a line, with audio_filepath (which becomes audio), text and duration.

    Paths are relative to the manifest. A row with an offset, which is a part of a longer file, is refused.
    """

    name = "nemo"
    traits = ReaderTraits(by_name=True)

    def accepts(self, source: str) -> bool:
        """Accept a .json or .jsonl file whose first line has audio_filepath."""
        try:
            if not source.lower().endswith((".json", ".jsonl")) or not os.path.isfile(source):
                return False
            with open(source, encoding="utf-8-sig", errors="replace") as file:
                first = file.readline(LONGEST_LINE)
            row = json.loads(first)
        except (OSError, ValueError):
            return False
        return isinstance(row, dict) and MANIFEST in row

    def read(self, source: str) -> Iterator[Row | BrokenRow]:
        with open(source, encoding="utf-8-sig", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    yield BrokenRow(number, f"not JSON: {error}")
                    continue
                if not isinstance(row, dict) or not isinstance(row.get(MANIFEST), str):
                    yield BrokenRow(number, f"no object with {MANIFEST}")
                elif row.get("offset"):
                    repair = "Cut the file into one for each row, for example with sox or ffmpeg"
                    yield BrokenRow(number, f"has offset {row['offset']}: it is a part of a longer file", repair)
                else:
                    path = row.pop(MANIFEST)
                    yield Row(number, {"audio": path, **row})


class CommonVoiceReader(Reader):
    """Common Voice's tables (train.tsv, …): sentence becomes text, client_id speaker, and path audio, in clips/."""

    name = "common-voice"

    def accepts(self, source: str) -> bool:
        """Accept a .tsv file with client_id, path and sentence."""
        try:
            if not source.lower().endswith(".tsv") or not os.path.isfile(source):
                return False
            with open(source, encoding="utf-8-sig", errors="replace") as file:
                columns = file.readline(LONGEST_LINE).rstrip("\r\n").split("\t")
        except OSError:
            return False
        return {"client_id", "path", "sentence"} <= set(columns)

    def read(self, source: str) -> Iterator[Row | BrokenRow]:
        renamed = {"client_id": "speaker", "sentence": "text"}
        with open(source, encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            columns = next(rows)
            for cells in rows:
                number = rows.line_num
                if len(cells) != len(columns):
                    yield BrokenRow(number, f"has {len(cells)} fields, and the header {len(columns)}")
                    continue
                row: dict[str, Any] = {
                    renamed.get(name, name): value or None for name, value in zip(columns, cells, strict=True)
                }
                path = f"{CLIPS}/{row.pop('path') or ''}"
                yield Row(number, {"audio": path, **row})


class LJSpeechReader(Reader):
    """A folder as LJSpeech is: metadata.csv with id|text|normalised text, and wavs/ID.wav.

    The normalised text is taken where there is one; nothing is quoted.
    """

    name = "ljspeech"
    traits = ReaderTraits(by_name=True)

    def accepts(self, source: str) -> bool:
        """Accept a folder with metadata.csv and wavs."""
        return os.path.isfile(os.path.join(source, "metadata.csv")) and os.path.isdir(os.path.join(source, "wavs"))

    def read(self, source: str) -> Iterator[Row | BrokenRow]:
        with open(os.path.join(source, "metadata.csv"), encoding="utf-8-sig", errors="replace") as file:
            for number, line in enumerate(file, 1):
                cells = line.rstrip("\r\n").split("|")
                place = f"/metadata.csv:{number}"
                if not line.strip():
                    continue
                if len(cells) < 2 or not cells[0].strip():
                    yield BrokenRow(place, "has no id and text between bars: id|text|normalised text")
                    continue
                path = f"wavs/{cells[0].strip()}.wav"
                text = cells[2] if len(cells) > 2 and cells[2].strip() else cells[1]
                yield Row(place, {"audio": path, "text": text})

    def files(self, source: str) -> list[str]:
        return [os.path.join(source, "metadata.csv")]


class AudioFolderReader(Reader):
    """A folder of recordings, each with its transcript in a .txt file of the same name; subfolders are speakers."""

    name = "audio-folder"
    traits = ReaderTraits(by_name=True)

    def accepts(self, source: str) -> bool:
        """Accept a folder."""
        return os.path.isdir(source)

    def read(self, source: str) -> Iterator[Row | BrokenRow]:
        found = sorted(path for path in Path(source).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise BrokenRow("", f"holds no recordings ({' '.join(SUFFIXES)})")
        for path in found:
            place, transcript = path.relative_to(source).as_posix(), path.with_suffix(".txt")
            if not transcript.is_file():
                yield BrokenRow(f"/{place}", f"has no transcript {transcript.name!r} beside it")
                continue
            text = transcript.read_text(encoding="utf-8-sig", errors="replace")
            row = {"audio": place, "text": " ".join(text.split())}
            speaker = {"speaker": place.partition("/")[0]} if "/" in place else {}
            yield Row(f"/{place}", row | speaker)
