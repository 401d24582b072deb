"""Folders and hub models: what is accepted, what is refused and why, and what arrives."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub
import pytest
import torch
from expected import raises
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from tiny import tiny_gpt2
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from ftengine.api import Labels, LoadRequest
from ftengine.errors import SourceError
from ftengine_builtins.loaders.transformers import TransformersLoader

SENTIMENT = Labels("single", ("negative", "positive"))


def load(folder: Path, head: str = "causal-lm", labels: Labels | None = None, *, skeleton: bool = False, **options):
    build = TransformersLoader().load_skeleton if skeleton else TransformersLoader().load
    return build(LoadRequest(str(folder), head, labels, **options))


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture
def llama(llama_folder, tmp_path) -> Path:
    """A copy of the tiny Llama that a test may damage."""
    return shutil.copytree(llama_folder, tmp_path / "llama")


@pytest.mark.parametrize("source", ["gpt2", "owner/name", "HuggingFaceTB/SmolLM2-135M-Instruct", "bert-base-uncased"])
def test_accepts_what_is_spelt_like_a_hub_id(source, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("contacted the hub"))
    assert TransformersLoader().accepts(source)


@pytest.mark.parametrize(
    "source", ["model.gguf", "a/b/c", "./folder", "package://x/y", "module:function", "", "a b", "-x/y", "/no/where"]
)
def test_does_not_accept_other_spellings(source) -> None:
    assert not TransformersLoader().accepts(source)


@pytest.mark.parametrize("name", ["llama_folder", "gpt2_folder", "bert_folder", "minilm_folder"])
def test_sound_folders_pass_the_check(request, name) -> None:
    TransformersLoader().check_source(str(request.getfixturevalue(name)))


def test_logits_equal_those_of_transformers(llama_folder) -> None:
    loaded = load(llama_folder)
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(llama_folder)(ids).logits
        assert torch.equal(loaded.module(ids).logits, expected)
    assert loaded.new_modules == ()
    assert loaded.source == str(llama_folder)
    assert all(p.requires_grad for p in loaded.module.parameters())


def test_dtype_auto_keeps_the_checkpoints(llama_folder, tmp_path) -> None:
    AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama_folder).save_pretrained(tmp_path)
    assert load(tmp_path).module.dtype == torch.bfloat16
    assert load(tmp_path, dtype="float32").module.dtype == torch.float32
    assert load(tmp_path, skeleton=True).module.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["llama_folder", "gpt2_folder"])
def test_skeleton_needs_no_weights(request, name, tmp_path) -> None:
    folder = shutil.copytree(request.getfixturevalue(name), tmp_path / "model")
    expected = {key: p.shape for key, p in load(folder).module.named_parameters()}
    (folder / "model.safetensors").unlink()
    skeleton = load(folder, skeleton=True)
    assert {key: p.shape for key, p in skeleton.module.named_parameters()} == expected
    assert {p.device.type for p in skeleton.module.parameters()} == {"meta"}


def test_attention_is_computed_as_asked(llama_folder) -> None:
    request = LoadRequest(str(llama_folder), "causal-lm", None)
    for asked, expected in (("auto", "sdpa"), ("eager", "eager"), ("flex_attention", "flex_attention")):
        loader = TransformersLoader(TransformersLoader.Config(attention=asked))
        for loaded in (loader.load_skeleton(request), loader.load(request)):
            assert loaded.module.config._attn_implementation == expected
    flash = TransformersLoader(TransformersLoader.Config(attention="flash_attention_2"))
    if find_spec("flash_attn") is None:
        with raises(SourceError, "flash_attention_2"):
            flash.load_skeleton(request)


def test_longest_input_is_the_smaller_of_model_and_tokenizer(llama) -> None:
    assert load(llama).max_length == 512
    edit(llama / "tokenizer_config.json", model_max_length=100)
    assert load(llama).max_length == 100


def test_missing_pad_token_becomes_eos_in_tokenizer_and_config(tmp_path) -> None:
    loaded = load(tiny_gpt2(tmp_path, pad_token=None), "sequence-classification", SENTIMENT)
    assert loaded.processor.pad_token == loaded.processor.eos_token == "<|im_end|>"
    assert loaded.module.config.pad_token_id == loaded.processor.pad_token_id
    batch = loaded.processor(["one", "rather more than one"], padding=True, return_tensors="pt")
    assert loaded.module(**batch).logits.shape == (2, 2)  # GPT-2 refuses a batch without a padding token


def test_generation_stops_at_the_tokenizers_end(llama) -> None:
    edit(llama / "generation_config.json", eos_token_id=0)
    assert load(llama).module.generation_config.eos_token_id == [0, 2]


# What is refused


def test_sharded_weights_need_every_shard(llama_folder, tmp_path) -> None:
    AutoModelForCausalLM.from_pretrained(llama_folder).save_pretrained(tmp_path, max_shard_size="50KB")
    AutoTokenizer.from_pretrained(llama_folder).save_pretrained(tmp_path)
    assert load(tmp_path).new_modules == ()
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[-1].unlink()
    with raises(SourceError, f"1 of {len(shards)} weight files", shards[-1].name):
        TransformersLoader().check_source(str(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.ckpt", "weights.pt"])
def test_pickled_weights_are_never_read(llama, name, monkeypatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled something"))
    (llama / "model.safetensors").rename(llama / name)
    with raises(SourceError, name, "safetensors"):
        TransformersLoader().check_source(str(llama))
    with raises(SourceError, "safetensors"):
        load(llama)


def test_pickle_named_in_the_config_is_not_read(llama) -> None:
    torch.save({}, llama / "other.bin")
    edit(llama / "config.json", transformers_weights="other.bin")
    with raises(SourceError, "other.bin"):
        load(llama)


@pytest.mark.parametrize("damage", [lambda b: b[:1000], lambda b: b[:-1], lambda b: b"\x80\x04pickle" + b])
def test_damaged_safetensors_is_refused(llama, damage) -> None:
    file = llama / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with raises(SourceError, "model.safetensors"):
        TransformersLoader().check_source(str(llama))


@pytest.mark.parametrize("content", ["{", "[1, 2]", "", "\udcff"])
def test_unreadable_config_is_refused(llama, content) -> None:
    (llama / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with raises(SourceError, "config.json"):
        TransformersLoader().check_source(str(llama))


def test_unknown_architecture_is_refused_with_the_nearest(llama) -> None:
    edit(llama / "config.json", model_type="lama")
    with raises(SourceError, "model_type", "'lama'", "llama"):
        TransformersLoader().check_source(str(llama))


@pytest.mark.parametrize("with_config", [True, False])
def test_adapter_folder_names_its_base(llama, with_config) -> None:
    (llama / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    if not with_config:
        (llama / "config.json").unlink()
    assert TransformersLoader().accepts(str(llama))
    with raises(SourceError, "some/base"):
        TransformersLoader().check_source(str(llama))


@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",)])
def test_missing_tokenizer_is_refused(llama, kept) -> None:
    # With its settings alone transformers would build an empty tokenizer, silently.
    for name in {"tokenizer.json", "tokenizer_config.json"} - set(kept):
        (llama / name).unlink()
    if kept:
        edit(llama / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    with raises(SourceError, "tokenizer"):
        TransformersLoader().load_processor(str(llama))


def test_missing_base_weights_are_named(llama) -> None:
    file = llama / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with raises(SourceError, "1 of the weights", "model.layers.1.mlp.up_proj.weight"):
        load(llama)


# Code that comes with a model

MODELLING = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM
class OddConfig(LlamaConfig):
    model_type = "odd"
class OddForCausalLM(LlamaForCausalLM):
    config_class = OddConfig
"""


@pytest.fixture
def odd(llama, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A model whose architecture is code beside its weights, and the file that the code leaves when it runs."""
    marker = tmp_path / "ran"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (llama / "odd.py").write_text(MODELLING.format(marker=str(marker)))
    auto_map = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddForCausalLM"}
    edit(llama / "config.json", model_type="odd", auto_map=auto_map)
    return llama, marker


def test_code_of_a_model_does_not_run_unasked(odd) -> None:
    folder, marker = odd
    loader = TransformersLoader()
    for attempt in (loader.check_source, loader.load_processor, lambda s: loader.load(LoadRequest(s, "causal-lm"))):
        with raises(SourceError, "model_type", "'odd'", "trust_remote_code"):
            attempt(str(folder))
    assert not marker.exists()


def test_code_of_a_model_runs_when_trusted(odd) -> None:
    folder, marker = odd
    loader = TransformersLoader(TransformersLoader.Config(trust_remote_code=True))
    loader.check_source(str(folder))
    loaded = loader.load(LoadRequest(str(folder), "causal-lm"))
    assert type(loaded.module).__name__ == "OddForCausalLM"
    assert marker.exists()


# The hub


@pytest.fixture
def hub(monkeypatch) -> dict[str, object]:
    """Stand in for the hub: copies what the patterns allow out of a folder given as `hub["model"]`."""
    state: dict[str, object] = {"calls": []}

    def snapshot_download(repo_id, *, revision, allow_patterns, ignore_patterns):
        state["calls"].append((repo_id, revision))
        target = Path(state["cache"])
        files = [str(path.relative_to(state["model"])) for path in Path(state["model"]).rglob("*") if path.is_file()]
        wanted = huggingface_hub.utils.filter_repo_objects(
            files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        for name in wanted:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(state["model"]) / name, target / name)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def test_hub_model_is_fetched_without_pickles_and_loaded(hub, llama, tmp_path) -> None:
    hub.update(model=llama, cache=tmp_path / "cache")
    torch.save({}, llama / "pytorch_model.bin")
    (llama / "odd.py").write_text("raise SystemExit")
    (llama / "onnx").mkdir()
    (llama / "onnx" / "config.json").write_text("{}")
    loader = TransformersLoader(TransformersLoader.Config(revision="v1"))
    loader.check_source("owner/name")
    assert not (tmp_path / "cache" / "model.safetensors").exists()
    loaded = loader.load(LoadRequest("owner/name", "causal-lm"))
    assert loaded.source == "owner/name"
    assert set(hub["calls"]) == {("owner/name", "v1")}
    found = {path.name for path in (tmp_path / "cache").rglob("*")}
    assert found >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert not found & {"pytorch_model.bin", "odd.py", "onnx"}


def test_hub_model_with_pickles_only_is_refused(hub, llama, tmp_path) -> None:
    hub.update(model=llama, cache=tmp_path / "cache")
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    with raises(SourceError, "pytorch_model.bin"):
        TransformersLoader().load(LoadRequest("owner/name", "causal-lm"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.LocalEntryNotFoundError, "cache"),
        (errors.RepositoryNotFoundError, "no model 'my_modle'"),
        (errors.GatedRepoError, "hf auth login"),
        (errors.RevisionNotFoundError, "'v9'"),
        (OSError, "OSError: went wrong"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_hub_model_that_does_not_come_says_why(monkeypatch, error, expected) -> None:
    def fail(*_, **__):
        raise error.__new__(error, "went wrong")  # the hub's own want a response of whatever client is behind them

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with raises(SourceError, "'my_modle'", expected):
        TransformersLoader(TransformersLoader.Config(revision="v9")).check_source("my_modle")


def test_revision_of_a_folder_is_refused(llama_folder) -> None:
    loader = TransformersLoader(TransformersLoader.Config(revision="main"))
    with raises(SourceError, "revision"):
        loader.check_source(str(llama_folder))
