"""Runs of a tiny Whisper: what predict, export and chat do with them."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from audio_files import RATE, encoded, spoken_rows, tiny_whisper, tone, write_rows
from expected import raises

import ftengine_speech
from ftengine import Recipe, fine_tune, registry_of
from ftengine.engine.chat import Chat
from ftengine.engine.export import export_run
from ftengine.engine.plan import plan
from ftengine.errors import InputError, NotExportable
from ftengine_builtins.exporters.gguf import GgufExporter
from ftengine_builtins.exporters.transformers import TransformersExporter
from ftengine_speech import SpeechCTC, SpeechToText


@pytest.mark.parametrize("task", [SpeechCTC, SpeechToText])
def test_recordings_do_not_chat(task):
    with raises(InputError, "recordings", "ftengine predict"):
        Chat(SimpleNamespace(task=task()))


def planted(rows, fault):
    """Return rows with a fault in them: headers that state another rate, or transcripts of the rows before."""
    if fault == "rate":
        return [{**row, "audio": {"bytes": encoded(spoken(row), RATE // 4)}} for row in rows]
    if fault == "shifted":
        return [{**row, "text": rows[i - 1]["text"]} for i, row in enumerate(rows)]
    return rows


def spoken(row):
    """Return a tone of 12 letters a second, another one for each text."""
    return tone(len(row["text"]) / 12, hertz=200 + sum(map(ord, row["text"])))


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "figure"), [(None, ""), ("rate", "rate"), ("shifted", "next")])
def test_plan_names_planted_faults(tmp_path, fault, figure):
    """Of recordings on disk, by the recipe that `ftengine plan` reads."""
    lengths = np.random.default_rng(0).integers(4, 20, 40)
    texts = ["".join(map(chr, np.random.default_rng(i).integers(97, 123, n))) for i, n in enumerate(lengths)]
    rows = planted([{"text": text, "audio": {"bytes": encoded(spoken({"text": text}))}} for text in texts], fault)
    for part in tiny_whisper(multilingual=False):
        part.save_pretrained(tmp_path / "model")
    recipe = {
        "model": {"source": str(tmp_path / "model")},
        "task": {"name": "speech-to-text", "max_seconds": 8.0},
        "data": {"train": str(write_rows(tmp_path, rows)), "validation": None},
        "strategy": {"name": "lora", "rank": 4},
        "evaluation": {"answers": None},
        "output": str(tmp_path / "run"),
    }
    found = plan(Recipe.make(recipe), measure=False, registry=registry_of({"speech": ftengine_speech})).data["findings"]
    alarms = [finding["figures"] for finding in found if finding["level"] == "alarm"]
    assert len(alarms) == bool(fault)
    assert all(figure in figures for figures in alarms)


@pytest.mark.slow
def test_a_tuned_model_transcribes_alike_in_transformers_pipeline(tmp_path):
    """The run's own answers, the exported folder's in plain transformers; GGUF has no Whisper."""
    from transformers import pipeline

    for part in tiny_whisper(multilingual=False):
        part.save_pretrained(tmp_path / "model")
    recipe = {
        "model": {"source": str(tmp_path / "model")},
        "task": {"name": "speech-to-text", "max_seconds": 2.0},
        "data": {"train": str(write_rows(tmp_path, spoken_rows(12))), "validation": 0.25},
        "strategy": {"name": "lora", "rank": 4},
        "train": {"max_steps": 4, "batch_size": 4, "learning_rate": 0.01, "precision": "float32"},
        "output": str(tmp_path / "run"),
    }
    run = fine_tune(Recipe.make(recipe), registry=registry_of({"speech": ftengine_speech}))
    files = [str(tmp_path / f"{i}.wav") for i in range(4)]
    answers = [x["text"] for x in run.predict([{"audio": file} for file in files], options={"max_new_tokens": 20})]
    assert len(set(answers)) > 1
    manifest = export_run(run, TransformersExporter(), tmp_path / "served", rows=3)
    assert manifest.proof is not None
    hear = pipeline("automatic-speech-recognition", model=str(tmp_path / "served"), device="cpu")
    options = {"max_new_tokens": 20, "num_beams": 1}
    waves = [soundfile.read(file, dtype="float32") for file in files]
    inputs = [{"raw": np.asarray(samples), "sampling_rate": rate} for samples, rate in waves]
    assert [hear(x, generate_kwargs=options)["text"].strip() for x in inputs] == answers
    with raises(NotExportable, "WhisperForConditionalGeneration", "GGUF"):
        export_run(run, GgufExporter(), tmp_path / "gguf", verify=False)
