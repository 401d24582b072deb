"""Vision transformers of timm and torchvision: adapters stand where a block adds to its residual."""

from __future__ import annotations

import copy

import pytest
import torch
from adapter_models import shake
from torch import Tensor, nn

from ftengine.api import LoadedModel
from ftengine_builtins.strategies.adapter import Adapter, AdapterConfig


def timms(**options) -> nn.Module:
    vit = pytest.importorskip("timm.models.vision_transformer")
    shape = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    return vit.VisionTransformer(**shape, **options)


def timms_scaled() -> nn.Module:
    return timms(init_values=0.5)  # as in DINOv2: what is added to the residual is multiplied


def torchvisions() -> nn.Module:
    vit = pytest.importorskip("torchvision.models.vision_transformer")
    return vit.VisionTransformer(16, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=3)


def timms_sublayers(block: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return block.ls1(block.attn(block.norm1(x))), block.ls2(block.mlp(block.norm2(y)))


def torchvisions_sublayers(block: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    normed = block.ln_1(x)
    return block.self_attention(normed, normed, normed, need_weights=False)[0], block.mlp(block.ln_2(y))


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize(
    ("build", "sublayers", "first"),
    [
        (timms, timms_sublayers, "blocks.0"),
        (timms_scaled, timms_sublayers, "blocks.0"),
        (torchvisions, torchvisions_sublayers, "encoder.layers.encoder_layer_0"),
    ],
)
def test_blocks_compute_the_papers_formula(build, sublayers, first: str, placement: str) -> None:
    torch.manual_seed(0)
    module = build().eval()
    plain, images = copy.deepcopy(module), torch.randn(2, 3, 16, 16)
    strategy = Adapter(AdapterConfig(placement=placement, sublayers=["attention", "output"], bottleneck=8))
    strategy.prepare(LoadedModel(module, None, "memory", "image-classification"))
    assert {sublayer: len(paths) for sublayer, paths in strategy.matches().items()} == {"attention": 2, "output": 2}
    assert torch.equal(module(images), plain(images))
    shake(module)

    attention, output = (module.get_submodule(paths[0]).bottleneck for paths in strategy.matches().values())
    block, x = plain.get_submodule(first), torch.randn(2, 5, 16)

    def added(adapter: nn.Module, h: Tensor, residual: Tensor) -> Tensor:
        read = {"houlsby": h, "pfeiffer": h + residual, "parallel": residual}[placement]
        return residual + h + adapter(read)

    y = added(attention, sublayers(block, x, x)[0], x)
    expected = added(output, sublayers(block, x, y)[1], y)
    torch.testing.assert_close(module.get_submodule(first)(x), expected)
