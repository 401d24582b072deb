"""Runs of a tiny Whisper: what predict, export and chat do with them."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from audio_files import spoken_rows, tiny_whisper, write_rows
from expected import raises

import ftengine_speech
from ftengine import Recipe, fine_tune, registry_of
from ftengine.engine.chat import Chat
from ftengine.engine.export import export_run
from ftengine.errors import InputError, NotExportable
from ftengine_builtins.exporters.gguf import GgufExporter
from ftengine_builtins.exporters.transformers import TransformersExporter
from ftengine_speech import SpeechCTC, SpeechToText


@pytest.mark.parametrize("task", [SpeechCTC, SpeechToText])
def test_recordings_do_not_chat(task):
    with raises(InputError, "recordings", "ftengine predict"):
        Chat(SimpleNamespace(task=task()))


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
