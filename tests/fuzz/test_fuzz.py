"""Damaged and hostile files are read, or refused in one line: nothing unexpected, no hang, no memory without bound."""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import EXTREMES, SECONDS, damaged, fuzz, survive
from hypothesis import strategies as st
from PIL import Image

from ftengine import Recipe, fine_tune, load_run
from ftengine.api import LoadRequest
from ftengine.data.read import read_rows
from ftengine.engine.experiment import Experiment
from ftengine.model import read_tensors, save_tensors
from ftengine.plugins.registry import Registry
from ftengine.run.records import RunRecords
from ftengine_builtins.loaders.gguf import GgufLoader
from ftengine_builtins.loaders.pretrained import stored_tensors
from ftengine_builtins.loaders.transformers import TransformersLoader
from ftengine_builtins.tasks.pixels import read_image

pytestmark = pytest.mark.slow

MEMORY = 6 << 30
"""Bytes of address space beyond those in use that nothing may ask for, in `make fuzz`."""
ROWS = [
    {"text": "a film, “good”\n", "label": "x", "n": 1, "deep": {"list": [1, None, 2.5]}},
    {"text": "", "label": "y", "n": -(2**62), "deep": {"list": []}},
] * 3
JSON = [b"{", b"}", b"[", b"]", b'"', b"\\ud83d", b"\\u0000", b"NaN", b"-1e999", b"null", b",", b":", b"\xef\xbb\xbf"]
JSON += [b"\n", b"\r", b"\xff", b"\xc3", b"[" * 3000, b"9" * 5000, b'{"text":' * 2000, b'"messages"', b"true", b"-1"]
HEADERS = [*EXTREMES, b'"data_offsets":[0,', b'"shape":[', b"BOOL", b"I64", b"99999999999", *JSON[:12]]


@pytest.fixture(scope="module", autouse=True)
def _bounded():
    """Refuse memory without bound where nothing else runs in this process."""
    if SECONDS and sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def arrow(file):
    table = pa.Table.from_pylist(ROWS).append_column("day", pa.array([0] * len(ROWS), pa.date32()))
    sink = io.BytesIO()
    if file == "parquet":
        pq.write_table(table, sink)
    else:
        make = pa.ipc.new_file if file == "arrow" else pa.ipc.new_stream
        with make(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


TABLE = "text,label,n\n" + "".join(f'"{row["text"]}",{row["label"]},{row["n"]}\n' for row in ROWS)
FILES = {
    ".jsonl": ["".join(json.dumps(row) + "\n" for row in ROWS).encode()],
    ".json": [json.dumps(ROWS, indent=1).encode()],
    ".csv": [TABLE.encode(), TABLE.replace(",", ";").encode()],
    ".tsv": [TABLE.replace(",", "\t").encode()],
    ".txt": [TABLE.encode()],
    ".parquet": [arrow("parquet")],
    ".arrow": [arrow("arrow"), arrow("stream")],
}
TOKENS = [*JSON, *EXTREMES, b'"', b'""', b",", b"\t", b";", b"\r\n", b"\r", b"\0", b"PAR1", b"ARROW1", b"\x1b[2J"]


@pytest.mark.parametrize("suffix", FILES)
def test_data_files(tmp_path, suffix):
    file, registry = tmp_path / f"rows{suffix}", Registry()

    def check(content):
        file.write_bytes(content)
        survive(lambda: read("fail"))
        survive(lambda: read("skip"))

    def read(on_error):
        rows = read_rows(str(file), on_error=on_error, registry=registry)
        for i, row in enumerate(rows):
            assert isinstance(row, dict)
            assert rows.where(i)

    assert fuzz(damaged(FILES[suffix], TOKENS), check, 20)


def image(kind, mode):
    sink = io.BytesIO()
    Image.effect_noise((9, 7), 60).convert(mode).save(sink, kind)
    return sink.getvalue()


def test_images():
    kinds = [("PNG", "RGB"), ("PNG", "LA"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"), ("GIF", "P")]
    kinds += [
        ("JPEG", "CMYK"),
        ("BMP", "RGB"),
        ("PPM", "L"),
        ("TIFF", "RGB"),
        ("TIFF", "I;16"),
        ("TIFF", "F"),
        ("WEBP", "RGBA"),
    ]
    tokens = [*EXTREMES, b"IHDR", b"IDAT", b"tEXt", b"zTXt", b"eXIf", b"\xff\xd8", b"\xff\xc0", b"\xff\xda"]
    tokens += [b"\xff\xe1", b"Exif\0\0II*\0", struct.pack(">I", 2**31 - 1), b"RIFF", b"VP8X"]
    contents = [image(*kind) for kind in kinds]
    assert fuzz(damaged(contents, tokens), lambda content: survive(lambda: read_image(content, "image")), 150)


RECIPE = """model: {source: MODEL, loader: transformers, dtype: auto}
task: {name: causal-lm, max_length: 64}
data: {train: rows.jsonl, validation: 0.2, split: {by: group, column: label}, columns: {text: body}}
strategy: {name: lora, rank: 4, alpha: 8, dropout: 0.1, targets: [q_proj, 're:.*v_proj']}
augment: [{name: delete-words, probability: 0.1}]
regularize: [{name: ema, decay: 0.9}]
train:
  epochs: 2
  learning_rate: 1.0e-4
  optimizer: {name: adamw}
  schedule: cosine
evaluation: {resamples: 100, slices: [label]}
seed: 3
output: runs/x
"""
YAML = [b"&a ", b"*a", b"!!python/object:os.system ", b"!!binary ", b"!!timestamp 2001-01-01", b"<<: *a", b"---\n"]
YAML += [
    b"...\n",
    b"- ",
    b": ",
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"~",
    b".inf",
    b".nan",
    b"-1",
    b"1e400",
    b"0x" + b"f" * 400,
]
YAML += [b"true", b"name: ", b"{name: ", b"\t", b"\0", b"\xff", b"|\n", b"? ", b"[" * 400, b"''", b"1_0"]
YAML += [
    b"12:30:45",
    b"\xe2\x80\xa8",
    b"(a+)+$",
    b"re:(",
    b"*" * 50,
    b"../../x",
    b"/dev/zero",
    b"data",
    b"model",
    b"task",
    b"lora",
    b"full",
]


def test_recipes(tmp_path, llama_folder):
    file, registry = tmp_path / "recipe.yaml", Registry()

    def check(content):
        file.write_bytes(content)
        survive(lambda: Experiment.open(Recipe.read(file), registry).resolved())

    assert fuzz(damaged([RECIPE.replace("MODEL", str(llama_folder)).encode()], YAML), check, 80)


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
    from gguf_file import write_llama_gguf
    from tiny import tiny_llama

    folder = tmp_path_factory.mktemp("gguf")
    return write_llama_gguf(tiny_llama(folder / "llama", num_hidden_layers=1), folder / "tiny.gguf").read_bytes()


def test_gguf_files(tmp_path, tiny_gguf):
    file = tmp_path / "model.gguf"
    keys = [b"llama.block_count", b"llama.vocab_size", b"general.architecture", b"tokenizer.ggml.tokens", b"llama"]

    def check(content):
        file.write_bytes(content)
        survive(load)

    def load():
        loader = GgufLoader()
        loader.check_source(str(file))
        loader.load_processor(str(file))
        loader.load(LoadRequest(str(file), "causal-lm"))

    assert fuzz(damaged([tiny_gguf], [*EXTREMES, *keys, b"{{ 1/0 }}", b"GGUF"]), check, 25)


def test_safetensors_files(tmp_path):
    import torch

    file = tmp_path / "x.safetensors"
    save_tensors({"a": torch.ones(2, 3), "b.c": torch.zeros(0, dtype=torch.bfloat16), "d": torch.tensor(1)}, file)

    def check(content):
        file.write_bytes(content)
        survive(lambda: read_tensors(file))
        survive(lambda: stored_tensors(file, "x"))

    assert fuzz(damaged([file.read_bytes()], HEADERS), check, 150)


def in_place(files):
    """Draw a file of a folder and what becomes of it: damaged, or gone."""
    contents = {file: file.read_bytes() for file in files}

    def of(file):
        tokens = YAML if file.suffix == ".yaml" else HEADERS if file.suffix == ".safetensors" else TOKENS
        return st.tuples(st.just(file), st.one_of(damaged([contents[file]], tokens), st.just(None)))

    return contents, st.sampled_from(files).flatmap(of)


def fuzz_folder(files, act, examples):
    """Damage one file of a folder at a time, and put it back."""
    contents, cases = in_place(files)

    def check(case):
        file, content = case
        try:
            file.unlink() if content is None else file.write_bytes(content)
            survive(act)
        finally:
            file.write_bytes(contents[file])

    assert fuzz(cases, check, examples)


def test_model_folders(tmp_path):
    from tiny import tiny_llama

    folder = tiny_llama(tmp_path / "model", num_hidden_layers=1)

    def load():
        loader = TransformersLoader()
        loader.check_source(str(folder))
        loader.load_processor(str(folder))
        loader.load_skeleton(LoadRequest(str(folder), "causal-lm"))
        loader.load(LoadRequest(str(folder), "causal-lm"))

    fuzz_folder(sorted(folder.iterdir()), load, 20)


def test_run_folders(tmp_path):
    from rows import write_rows
    from tiny import tiny_llama

    data = write_rows(tmp_path / "rows.jsonl", [{"text": f"text number {i}"} for i in range(20)])
    recipe = {
        "model": {"source": str(tiny_llama(tmp_path / "model", num_hidden_layers=1))},
        "task": "causal-lm",
        "data": {"train": data, "validation": 0.2},
        "strategy": {"name": "lora", "rank": 2},
        "train": {"max_steps": 1, "batch_size": 2, "precision": "float32"},
        "evaluation": {"resamples": 100, "answers": None},
        "output": str(tmp_path / "run"),
    }
    path = fine_tune(Recipe.make(recipe)).path

    def read():
        RunRecords.read(path)
        run = load_run(path)
        assert run.verdict.headline
        assert list(run.predict([{"text": "text"}], options={"max_new_tokens": 1}))

    files = [file for file in path.rglob("*") if file.is_file() and file.parent.name in ("run", "adapter")]
    fuzz_folder(sorted(files), read, 15)
