"""Models inside installed packages are found without running the packages' code."""

from __future__ import annotations

import importlib
import shutil
import sys

import pytest
from expected import raises

from ftengine.api import LoadRequest
from ftengine.errors import SourceError
from ftengine_builtins.loaders.package import PackageLoader, resolve


@pytest.fixture
def installed(tmp_path, monkeypatch, llama_folder):
    """A package `carrier` with a model in it, installed as the distribution `model-carrier`; it cannot be imported."""
    package = tmp_path / "site" / "carrier"
    shutil.copytree(llama_folder, package / "models" / "llama")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "notes.txt").write_text("not a model")
    (tmp_path / "site" / "lonely.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "secret").mkdir()
    record = tmp_path / "site" / "model_carrier-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: model-carrier\nVersion: 1.0\n")
    (record / "RECORD").write_text(
        "carrier/__init__.py,,\ncarrier/notes.txt,,\nmodel_carrier-1.0.dist-info/METADATA,,\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    yield package
    assert "carrier" not in sys.modules


@pytest.mark.parametrize("name", ["carrier", "model-carrier", "model_carrier", "Model.Carrier"])
def test_package_is_found_by_either_name(installed, name) -> None:
    assert resolve(f"package://{name}/models/llama") == installed / "models" / "llama"


def test_model_is_loaded_without_importing_the_package(installed) -> None:
    source = "package://carrier/models/llama"
    loader = PackageLoader()
    loader.check_source(source)
    assert loader.load_processor(source).eos_token == "<|im_end|>"
    loaded = loader.load(LoadRequest(source, "causal-lm"))
    assert loaded.source == source
    assert loaded.module.config.hidden_size == 64


def test_gguf_of_a_package_is_loaded(installed, tiny_gguf) -> None:
    shutil.copy(tiny_gguf, installed / "tiny.gguf")
    loaded = PackageLoader().load_skeleton(LoadRequest("package://model-carrier/tiny.gguf", "causal-lm"))
    assert loaded.source == "package://model-carrier/tiny.gguf"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package://plugyy/model", "'pluggy'"),
        ("package://not_there/model", "pip install not-there"),
        ("package://os.path/model", "'os.path'"),
        ("package://lonely/model", "single module"),
        ("package://carrier/models/lama", "'llama'"),
        ("package://carrier/nothing/at/all", "'nothing/at/all'"),
        ("package://carrier/notes.txt", "config.json"),
        ("package://carrier/models", "no config.json"),
        ("package://carrier/../../secret", "out of the package"),
        ("package://carrier/models/../../../secret", "out of the package"),
        ("package://carrier//etc", "out of the package"),
        ("package://carrier/..\\secret", "package://NAME/PATH"),
        ("package://carrier", "package://NAME/PATH"),
        ("package://carrier/", "package://NAME/PATH"),
        ("package:///models", "package://NAME/PATH"),
        ("package://../secret", "not installed"),
    ],
)
def test_wrong_sources_are_refused(installed, source, message) -> None:
    with raises(SourceError, message):
        PackageLoader().check_source(source)
