"""Whole runs on recordings: trained, resumed, opened again, merged and exported, from JSONL, Parquet and data sets."""

import json
import sys
from pathlib import Path

import pytest
import torch

from ftengine import Recipe, fine_tune, load_run

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "plugins" / "ftengine-speech" / "tests"))

from audio_files import encoded, spoken_rows, tiny_whisper, tone, write_rows  # noqa: E402

pytestmark = [pytest.mark.usefixtures("installed"), pytest.mark.slow]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A random multilingual Whisper in a transformers folder."""
    folder = tmp_path_factory.mktemp("whisper")
    module, processor = tiny_whisper()
    module.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def recipe(whisper, data, output, **more):
    return Recipe.make(
        {
            "model": {"source": str(whisper)},
            "task": {"name": "speech-to-text", "max_seconds": 2, "language": "de"},
            "data": {"train": str(data), "validation": 0.25},
            "strategy": {"name": "lora", "rank": 4, "targets": "model[.]decoder[.].*(q_proj|v_proj|fc1|fc2)"},
            "train": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01, "precision": "float32"},
            "evaluate": ["cer"],
            "evaluation": {"resamples": 100},
            "output": str(output),
            **more,
        }
    )


def rows_of(count=16):
    return [{**row, "text": f"{row['text']} {i}", "speaker": f"s{i % 4}"} for i, row in enumerate(spoken_rows(count))]


def test_a_run_is_trained_opened_merged_and_answers_as_transformers_does(whisper, tmp_path):
    import soundfile
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    data = write_rows(tmp_path, [{**row, "speaker": "a"} for row in rows_of(12)])
    run = fine_tune(recipe(whisper, data, tmp_path / "run"))
    figures = run.evaluation
    assert {"wer", "cer", "loss"} <= figures["tuned"].keys()
    assert figures["tuned"]["loss"]["value"] < figures["base"]["loss"]["value"]
    again = load_run(tmp_path / "run")
    files = [tmp_path / f"{i}.wav" for i in range(3)]
    asked = [{"audio": str(file)} for file in files]
    answers = [answer["text"] for answer in again.predict(asked, options={"max_new_tokens": 8})]
    again.merge(tmp_path / "merged")
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    module = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert (module.generation_config.language, module.generation_config.task) == ("de", "transcribe")
    waves = [soundfile.read(file, dtype="float32")[0] for file in files]
    features = processor(waves, sampling_rate=16_000, return_tensors="pt").input_features
    output = module.generate(features, max_new_tokens=8)
    assert [text.strip() for text in processor.batch_decode(output, skip_special_tokens=True)] == answers


def test_parquet_and_data_sets_of_audio_are_read_without_decoding(whisper, tmp_path):
    """As pandas writes bytes, and as `datasets` writes its Audio column."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = rows_of(8)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "bytes.parquet")
    features = datasets.Features({"audio": datasets.Audio(decode=False), "text": datasets.Value("string")})
    table = pa.Table.from_pylist([{"audio": row["audio"], "text": row["text"]} for row in rows])
    table = table.cast(features.arrow_schema)  # whose metadata make it a column of Audio, to be decoded by torchcodec
    pq.write_table(table, tmp_path / "hub.parquet")
    for name in ("bytes", "hub"):
        asked = recipe(whisper, tmp_path / f"{name}.parquet", tmp_path / name, train={"max_steps": 1, "batch_size": 2})
        assert fine_tune(asked).evaluation["tuned"]["wer"]["value"] >= 0


def test_rows_that_cannot_be_heard_are_left_out_by_number(whisper, tmp_path):
    data = write_rows(tmp_path, rows_of(12))
    (tmp_path / "3.wav").write_bytes(b"nothing")
    (tmp_path / "5.wav").write_bytes(encoded(0 * tone(0.5)))
    lines = data.read_text().splitlines()
    lines[7] = json.dumps({**json.loads(lines[7]), "text": ""})
    data.write_text("\n".join(lines) + "\n")
    augment = [{"name": "audio-noise", "snr": [10, 20]}, {"name": "audio-speed"}, {"name": "spec-augment"}]
    asked = recipe(whisper, data, tmp_path / "run", augment=augment, train={"max_steps": 2})
    asked.data.on_error = "skip"
    run = fine_tune(asked)
    splits = json.loads((run.path / "audit.json").read_text())["splits"]
    assert splits["train"]["skipped"]["count"] == 3
    assert all(f"train.jsonl:{line}" in str(splits["train"]["skipped"]["first"]) for line in (4, 6, 8))
