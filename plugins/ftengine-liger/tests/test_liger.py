"""Liger's kernels in models of several families: what they compute, and what is left alone."""

import copy
import json

import pytest
import torch
from interpreted import _interpreter, compiled, interpreted, replaced  # noqa: F401
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    Phi3Config,
    Qwen3Config,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

import ftengine_liger
from ftengine import Recipe, fine_tune, registry_of
from ftengine.api import LoadedModel
from ftengine.errors import PluginError, RecipeError
from ftengine.plugins.registry import Registry
from ftengine.testing import check_component, models, training_context
from ftengine_liger.fast_path import Liger

DECODER = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
FAMILIES = {
    "llama": (LlamaConfig(**DECODER), {"RMS norms": 5, "SwiGLU blocks": 2}),
    "qwen3": (Qwen3Config(**DECODER, head_dim=8), {"RMS norms": 9, "SwiGLU blocks": 2}),
    "gemma2": (Gemma2Config(**DECODER, head_dim=8), {"RMS norms": 9, "GeGLU blocks": 2}),
    "phi3": (Phi3Config(**DECODER), {"RMS norms": 5}),  # gate and up are one layer there
    "t5": (T5Config(**T5, feed_forward_proj="gated-gelu", decoder_start_token_id=0, pad_token_id=0), {"RMS norms": 12}),
}


def made(config, dtype=torch.float32):
    torch.manual_seed(0)
    cls = T5ForConditionalGeneration if isinstance(config, T5Config) else AutoModelForCausalLM.from_config
    module = cls(copy.deepcopy(config)).to(dtype).train()
    for name, parameter in module.named_parameters():
        if "norm" in name:  # a fresh one is all ones, or zeros
            nn.init.normal_(parameter)
    return module


def loaded(module):
    return LoadedModel(module, None, "test", None)


def active(module, **options):
    """Let a model compute by Liger's kernels; yields what they replace."""
    return Liger(Liger.Config(**options)).activate(loaded(module), training_context())


def passed(module, **more):
    torch.manual_seed(1)
    ids = torch.randint(1, 64, (2, 7))
    module.zero_grad()
    loss = module(input_ids=ids, labels=ids, **more).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]


def close(actual, expected, dtype):
    """Within 16 units in the last place of each norm: rounding adds up over the layers, a wrong term is far more."""
    for own, plain in zip(actual, expected, strict=True):
        assert float((own - plain).double().norm()) <= 16 * torch.finfo(dtype).eps * float(plain.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_modules_are_known_by_what_they_compute(interpreted, family, dtype):  # noqa: F811
    config, expected = FAMILIES[family]
    module = made(config, dtype)
    before = passed(module)
    with active(module) as counts:
        first, second = passed(module), passed(module)
    assert counts == expected
    close(first, before, dtype)
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, passed(module), before))


def test_what_it_computes_can_be_computed_twice(interpreted):  # noqa: F811
    module = made(FAMILIES["llama"][0])
    before = passed(module)
    module.gradient_checkpointing_enable({"use_reentrant": False})
    with active(module) as counts:
        close(passed(module, use_cache=False), before, torch.float32)
    assert counts == FAMILIES["llama"][1]


@pytest.mark.parametrize("options", [{}, {"dropout": 0.2}, {"dora": True}])
def test_gradients_of_lora_beside_the_kernels(interpreted, options):  # noqa: F811
    module = made(FAMILIES["llama"][0])
    model = loaded(module)
    entry = Registry().get("strategy", "lora")
    entry.cls(entry.cls.Config(rank=4, **options)).prepare(model)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and "lora" in name:
            nn.init.normal_(parameter, std=0.1)
    module.train()
    grouped = Registry().get("fast-path", "grouped-layers").cls()
    with grouped.activate(model, training_context()):  # as in a run
        before = passed(module)
        with active(module) as counts:
            close(passed(module), before, torch.float32)
    assert counts == FAMILIES["llama"][1]


def test_a_copy_computes_with_weights_of_its_own(interpreted):  # noqa: F811
    module = made(FAMILIES["llama"][0])
    with active(module):
        before = passed(module)
        twin = copy.deepcopy(module)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
        assert all(map(torch.equal, passed(twin), before))


def test_a_second_backward_pass_is_refused_and_not_wrong(interpreted):  # noqa: F811
    module = nn.Sequential(LlamaRMSNorm(32), LlamaMLP(FAMILIES["llama"][0])).train()
    x = torch.randn(3, 32, requires_grad=True)
    with active(module):
        y = module(x).sum()
        y.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="a gradient is computed twice, or differentiated"):
            y.backward()
        with pytest.raises(RuntimeError, match="a gradient is computed twice, or differentiated"):
            torch.autograd.grad(module(x).sum(), x, create_graph=True)


class Doubled(LlamaMLP):
    def forward(self, x):
        return 2 * super().forward(x)


class Centred(LlamaRMSNorm):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class Outside(LlamaRMSNorm):
    def forward(self, x):
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + 0.1)


def scaled(config):
    """A strategy's class, made while it prepared the model."""
    norm = LlamaRMSNorm(config.hidden_size)
    norm.__class__ = type("Scaled", (LlamaRMSNorm,), {"forward": lambda self, x: 2 * LlamaRMSNorm.forward(self, x)})
    return norm


def block(activation):
    return LlamaMLP(LlamaConfig(**DECODER, hidden_act=activation))


OTHERS = {
    "relu": lambda config: block("relu"),
    "gelu": lambda config: block("gelu"),
    "norm of means": lambda config: nn.LayerNorm(32, bias=False),
    "centred": lambda config: Centred(32),
    "outside": lambda config: Outside(32),
    "made by a strategy": scaled,
    "another forward": Doubled,
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_what_computes_something_else_is_left_alone(interpreted, make):  # noqa: F811
    with active(nn.Sequential(make(FAMILIES["llama"][0]))) as counts:
        assert counts is None


def test_options_leave_norms_or_gates_out(interpreted):  # noqa: F811
    for option, left in (("norms", {"SwiGLU blocks": 2}), ("gates", {"RMS norms": 5})):
        module = made(FAMILIES["llama"][0])
        with active(module, **{option: False}) as counts:
            passed(module)
        assert counts == left


# Whole runs.


@pytest.fixture(scope="module")
def registry():
    return registry_of({"liger": ftengine_liger})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("liger")
    for name, make in (("llama", models.tiny_llama), ("gpt2", models.tiny_gpt2)):
        for part in make():
            part.save_pretrained(folder / name)
    rows = [{"prompt": f"What is {a} + {b}?", "completion": f"It is {a + b}."} for a in range(4) for b in range(6)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def recipe(folder, output, fast_paths, model="llama", **train):
    content = {
        "model": {"source": str(folder / model)},
        "task": "causal-lm",
        "data": {"train": str(folder / "rows.jsonl"), "validation": 0.25},
        "strategy": {"name": "lora", "rank": 4, "dropout": 0.1},
        "train": {"max_steps": 4, "batch_size": 4, "precision": "float32", "fast_paths": fast_paths, **train},
        "evaluation": {"resamples": 100},
        "output": str(folder / output),
    }
    return Recipe.make(content)


def curve(run):
    lines = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_learns_the_same_by_it(replaced, folder, registry, checkpointing):  # noqa: F811
    train = {"gradient_checkpointing": checkpointing}
    with_it = fine_tune(recipe(folder, f"with-{checkpointing}", ["liger"], **train), registry=registry)
    without = fine_tune(recipe(folder, f"without-{checkpointing}", "off", **train), registry=registry)
    assert curve(with_it) == pytest.approx(curve(without), rel=1e-5)
    used = with_it.directory.read_json("environment.json")["fast_paths"]["liger"]
    assert used["active"]
    assert used["replaced"]["RMS norms"] == 2 * used["replaced"]["SwiGLU blocks"] + 1


def test_without_a_gpu_it_is_refused_by_name_before_weights_are_read(compiled, folder, registry, monkeypatch):  # noqa: F811
    loader = Registry().get("loader", "transformers").cls
    monkeypatch.setattr(loader, "load", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(RecipeError, match="liger' needs a GPU"):
        fine_tune(recipe(folder, "no-gpu", ["liger"]), registry=registry)
    assert not (folder / "no-gpu").exists()


def test_where_no_recipe_names_it_a_cpu_computes_as_it_does(compiled, folder, registry):  # noqa: F811
    run = fine_tune(recipe(folder, "auto", "auto"), registry=registry)
    used = run.directory.read_json("environment.json")["fast_paths"]["liger"]
    assert (used["active"], used["replaced"]) == (False, {})
    assert "GPU" in used["reason"]


def test_a_model_without_such_modules_is_refused_by_name(interpreted, folder, registry):  # noqa: F811
    with pytest.raises(RecipeError, match="'liger': it finds nothing"):
        fine_tune(recipe(folder, "gpt2-run", ["liger"], model="gpt2"), registry=registry)
    assert not (folder / "gpt2-run").exists()


def test_the_engine_refuses_kernels_that_compute_something_else(replaced, folder, registry, monkeypatch):  # noqa: F811
    from ftengine_liger import kernels

    plain = kernels.norm_kernel
    monkeypatch.setattr(kernels, "norm_kernel", lambda *known: lambda x, w: 1.01 * plain(*known)(x, w))
    with pytest.raises(PluginError, match=r"'liger' .*differs by"):
        fine_tune(recipe(folder, "wrong", ["liger"]), registry=registry)


def test_it_keeps_the_contract(replaced):  # noqa: F811
    check_component(Liger)
