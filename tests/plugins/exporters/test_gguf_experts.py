"""Experts in GGUF files, read by the gguf package."""

from __future__ import annotations

from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from expected import raises
from expert_models import mixture
from torch import nn

from ftengine.api import ExportSource
from ftengine.errors import NotExportable
from ftengine_builtins.exporters import gguf as writer
from ftengine_builtins.exporters import gguf_experts
from ftengine_builtins.strategies.expert_layers import expert_modules, names, routers

KNOWN = {"Mixtral": ("llama", 24), "Qwen3Moe": ("qwen3moe", 12)}


def source_of(module: nn.Module, folder) -> ExportSource:
    """Return what an exporter needs of a model that is merged already."""
    module.save_pretrained(folder)
    return SimpleNamespace(
        module=module, merged=lambda dtype: folder, base="base", max_length=64, generation={}, stop=()
    )  # type: ignore[return-value]


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("dtype", ["F32", "Q8_0"])
def test_experts_are_one_tensor_each(kind, dtype, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(writer.gguf_tokenizer, "write", lambda *_: None)
    module = mixture(kind).module
    source = source_of(module, tmp_path / "merged")
    writer.check_architecture(source)
    writer.write_model(source, tmp_path / "model.gguf", dtype)
    writer.require_precision(source, tmp_path / "model.gguf", dtype)
    file = gguf.GGUFReader(tmp_path / "model.gguf")
    stored = {tensor.name: tensor for tensor in file.tensors}
    architecture, width = KNOWN[kind]
    numbers = {key.rpartition(".")[2]: field.contents() for key, field in file.fields.items() if "expert" in key}
    assert file.fields["general.architecture"].contents() == architecture
    assert numbers == {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": width}
    for number, part in enumerate(expert_modules(module).values()):
        fused, down = (part._parameters[name].detach() for name in names(part))
        gate, up = fused.chunk(2, 1)
        for name, weight in (("gate", gate), ("up", up), ("down", down)):
            tensor = stored[f"blk.{number}.ffn_{name}_exps.weight"]
            read = gguf.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_allclose(read, weight.numpy(), atol=0 if dtype == "F32" else 0.02)
    router = module.get_parameter(f"{min(routers(module))}.weight")
    assert torch.equal(torch.from_numpy(stored["blk.0.ffn_gate_inp.weight"].data.copy()), router)


@pytest.mark.parametrize("kind", ["GptOss", "DeepseekV3", "Glm4Moe", "GraniteMoe"])
def test_mixtures_that_llama_cpp_was_not_tested_with_are_refused(kind, tmp_path) -> None:
    with raises(NotExportable, f"{kind}ForCausalLM", "OlmoeForCausalLM"):
        writer.check_architecture(source_of(mixture(kind).module, tmp_path))


def test_what_llama_cpp_computes_otherwise_is_refused(tmp_path) -> None:
    module = mixture("Qwen3Moe").module
    module.config.norm_topk_prob = False
    with raises(NotExportable, "norm_topk_prob False"):
        writer.check_architecture(source_of(module, tmp_path))
    config = mixture("Olmoe").module.config
    found = {name for name, there in gguf_experts.faults("OlmoeForCausalLM", config).items() if there}
    assert found == {"fewer heads of keys than of queries"}
