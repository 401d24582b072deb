"""GGUF files become ordinary models, and damaged ones are found by their header."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from expected import raises
from packaging.version import InvalidVersion
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.import_utils import is_gguf_available

from ftengine.api import Labels, LoadRequest
from ftengine.errors import SourceError
from ftengine_builtins.loaders.gguf import GgufLoader, unpack


def is_gguf_available_here() -> bool:
    """Say whether transformers reads GGUF files by itself: before 5.20 it does not under Python 3.10."""
    with suppress(InvalidVersion):
        return is_gguf_available()
    return False


CHAT = [{"role": "user", "content": "What is 12 + 30? Café, 日本."}]


def test_accepts_existing_gguf_files_only(tiny_gguf, llama_folder, tmp_path) -> None:
    loader = GgufLoader()
    assert loader.accepts(str(tiny_gguf))
    assert not loader.accepts(str(tmp_path / "missing.gguf"))
    assert not loader.accepts(str(llama_folder))


@pytest.mark.parametrize("shape", [(64,), (7, 32), (96, 4096), (512, 96), (3, 10, 64)], ids=str)
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1", "Q5_0"])
def test_several_rows_unpack_to_what_each_does(kind, shape) -> None:
    kind = gguf.GGMLQuantizationType[kind]
    packed = gguf.quants.quantize(np.random.default_rng(0).standard_normal(shape, dtype=np.float32), kind)
    found, expected = unpack(packed, kind), gguf.quants.dequantize(packed, kind)
    assert found.shape == shape
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


@pytest.mark.slow
def test_smollm2_saves_and_reloads_with_transformers_alone(smollm2) -> None:
    with tempfile.TemporaryDirectory() as folder:  # half a gigabyte that pytest would keep
        smollm2.module.save_pretrained(folder)
        smollm2.processor.save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
    assert "quantization_config" not in config
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**prompt).logits, smollm2.module(**prompt).logits)
    ours = smollm2.processor.apply_chat_template(CHAT, add_generation_prompt=True)
    assert prompt["input_ids"][0].tolist() == ours["input_ids"]


@pytest.mark.slow
def test_smollm2_answers_in_its_chat_format_and_stops(smollm2) -> None:
    tokenizer = smollm2.processor
    assert "<|im_start|>" in tokenizer.chat_template
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    answer = smollm2.module.generate(**prompt, max_new_tokens=30, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert len(answer) < 30


@pytest.mark.skipif(not is_gguf_available_here(), reason="this transformers does not find gguf's version here")
def test_weights_equal_what_transformers_reads_unaided(tiny_gguf) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_gguf.parent, gguf_file=tiny_gguf.name)
    loaded = GgufLoader().load(LoadRequest(str(tiny_gguf), "causal-lm"))
    expected = plain.state_dict()
    assert loaded.module.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.module.state_dict().items())


@pytest.mark.parametrize("skeleton", [False, True])
def test_classification_head_is_fresh(tiny_gguf, skeleton) -> None:
    labels = Labels("single", ("no", "yes", "maybe"))
    build = GgufLoader().load_skeleton if skeleton else GgufLoader().load
    loaded = build(LoadRequest(str(tiny_gguf), "sequence-classification", labels))
    assert loaded.new_modules == ("score",)
    assert loaded.module.config.label2id == {"no": 0, "yes": 1, "maybe": 2}


@pytest.mark.parametrize("part", [0.0001, 0.01, 0.05, 0.5, 0.99])
def test_truncated_file_is_refused(tiny_gguf, tmp_path, part) -> None:
    content = tiny_gguf.read_bytes()
    file = tmp_path / "cut.gguf"
    file.write_bytes(content[: int(len(content) * part)])
    with raises(SourceError, "cut.gguf"):
        GgufLoader().check_source(str(file))


def test_every_damaged_length_in_the_header_is_survived(tiny_gguf, tmp_path) -> None:
    # A huge count must neither be looped over nor be allocated.
    content = bytearray(tiny_gguf.read_bytes())
    file = tmp_path / "damaged.gguf"
    for place in range(8, 2000, 41):
        damaged = content.copy()
        damaged[place : place + 8] = struct.pack("<Q", 2**63 - 1)
        file.write_bytes(damaged)
        with suppress(SourceError):
            GgufLoader().check_source(str(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"PK\x03\x04 a zip archive, perhaps pickled weights", "magic invalid"),
        (b"GGUF", "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "holds no model"),
        (b"GGUF" + struct.pack("<IQQQ11sIQ1s", 3, 0, 1, 11, b"split.count", 8, 1, b"\x80"), "split.count"),
        (b"GGUF" + struct.pack("<IQQQ17sII", 3, 0, 1, 17, b"general.alignment", 4, 0), "Invalid alignment"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    for attempt in (GgufLoader().check_source, GgufLoader().load_processor):
        with raises(SourceError, message):
            attempt(str(file))


def test_split_file_is_refused(write_gguf, llama_folder, tmp_path) -> None:
    file = write_gguf(llama_folder, tmp_path / "model-00001-of-00003.gguf", split_count=3)
    with raises(SourceError, "3 parts", "--merge"):
        GgufLoader().check_source(str(file))


def test_unknown_architecture_is_refused(tiny_gguf, tmp_path) -> None:
    file = tmp_path / "other.gguf"
    file.write_bytes(tiny_gguf.read_bytes().replace(b"llama", b"lloma"))
    with raises(SourceError, "lloma"):
        GgufLoader().load_processor(str(file))


@pytest.mark.parametrize("key", ["block_count", "feed_forward_length"])
def test_absurd_sizes_are_refused(tiny_gguf, tmp_path, key) -> None:
    file, content = tmp_path / "absurd.gguf", tiny_gguf.read_bytes()
    at = content.index(f"llama.{key}".encode()) + len(f"llama.{key}") + 4  # behind its type
    file.write_bytes(content[:at] + (10**9).to_bytes(4, "little") + content[at + 4 :])
    loader = GgufLoader()
    with pytest.raises(SourceError):
        loader.load_skeleton(LoadRequest(str(file), "causal-lm"))


def test_adapter_beside_the_file_is_not_applied_unasked(tiny_gguf, tmp_path) -> None:
    file = Path(shutil.copy(tiny_gguf, tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with raises(SourceError, "some/base"):
        GgufLoader().check_source(str(file))
