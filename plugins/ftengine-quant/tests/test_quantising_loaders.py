"""What the loaders quantise and what they leave, what the layers compute, and what is refused."""

import copy
from dataclasses import replace

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from expected import raises
from pydantic import ValidationError
from quantised_models import bert, gpt2, llama, qwen3_moe
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import ftengine_quant
from ftengine import api, registry_of
from ftengine.errors import NoMatch, RecipeError, SourceError, UnknownName
from ftengine.identity import fingerprint_base
from ftengine.testing import check_loader
from ftengine_quant import loaders
from ftengine_quant.loaders import BitsAndBytesLoader, TorchaoLoader

KINDS = {
    "nf4": (BitsAndBytesLoader, {}),
    "fp4-double": (BitsAndBytesLoader, {"quant_type": "fp4", "double_quant": True}),
    "int8": (BitsAndBytesLoader, {"bits": 8}),
    "torchao": (TorchaoLoader, {}),
}
IDS = torch.arange(3, 15).view(2, 6)
LABELS = api.Labels("single", ("bad", "fine", "good"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {make.__name__: str(make(root / make.__name__)) for make in (llama, bert, gpt2, qwen3_moe)}


@pytest.fixture(params=KINDS)
def make(request):
    """Return a function that makes a fresh loader."""
    cls, options = KINDS[request.param]
    return lambda **more: cls(cls.Config(**options, **more))


def asked(source, head="causal-lm", labels=None):
    return api.LoadRequest(source, head, labels, dtype="float32")


def plain(request):
    return registry_of().build("loader", "transformers", "model.loader").load(request)


def dequantised(layer):
    """Return the weight that a layer computes with, from what it answers to unit vectors."""
    with torch.no_grad():
        answer = layer(torch.eye(layer.in_features))
        return (answer - (0 if layer.bias is None else layer.bias)).T


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fp4-double"])
def test_the_conformance_suite(kind, folders):
    cls, options = KINDS[kind]
    check_loader(lambda: cls(cls.Config(**options)), asked(folders["llama"]))
    check_loader(lambda: cls(cls.Config(**options)), asked(folders["bert"], "sequence-classification", LABELS))


def test_linear_layers_are_quantised_and_nothing_else(make, folders):
    loaded, base = make().load(asked(folders["llama"])), plain(asked(folders["llama"]))
    packed = {name for name, p in loaded.module.named_parameters() if not p.is_floating_point()}
    linear = {f"{path}.weight" for path, part in base.module.named_modules() if type(part) is nn.Linear}
    assert packed == linear - {"lm_head.weight"}
    assert not any(p.requires_grad for name, p in loaded.module.named_parameters() if name in packed)
    for name, parameter in base.module.named_parameters():
        if name not in packed:
            assert torch.equal(dict(loaded.module.named_parameters())[name], parameter)


def test_weights_come_close_and_biases_are_the_bases(make, folders):
    request = asked(folders["bert"], "sequence-classification", api.Labels("single", ("a", "b")))
    loaded, base = make().load(request), plain(request)
    bits = 8 if loaded.module.bert.encoder.layer[0].output.dense.weight.dtype is torch.int8 else 4
    for path, layer in base.module.named_modules():
        if type(layer) is nn.Linear and "encoder" in path:
            packed = loaded.module.get_submodule(path)
            off = (dequantised(packed) - layer.weight).norm() / layer.weight.norm()
            assert 1e-4 < off < (0.02 if bits == 8 else 0.15)
            assert torch.equal(packed.bias, layer.bias)


def test_experts_stay_as_they_are_and_train(make, folders):
    loaded = make().load(asked(folders["qwen3_moe"]))
    strategy = registry_of().build("strategy", {"name": "lora", "dropout": 0.0}, "strategy")
    strategy.prepare(loaded)
    facts, warnings = strategy.notes(loaded)
    assert "4 experts" in facts[0]
    assert not warnings
    parameters = dict(loaded.module.named_parameters())
    assert not any(p.dtype.itemsize < 2 for name, p in parameters.items() if ".experts." in name)
    assert any(p.dtype.itemsize < 2 for name, p in parameters.items() if "q_proj" in name)
    loaded.module(input_ids=IDS, labels=IDS).loss.backward()
    trained = {name: p.grad for name, p in parameters.items() if p.requires_grad and name.endswith("_b")}
    assert {"experts", "self_attn"} <= {part for name in trained for part in name.split(".")}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in trained.values())


def test_heads_and_new_modules_stay(make, folders):
    for labels in (LABELS, api.Labels("single", ("LABEL_0", "LABEL_1"))):  # a new head, and the checkpoint's
        loaded = make().load(asked(folders["bert"], "sequence-classification", labels))
        assert type(loaded.module.classifier) is nn.Linear
        assert loaded.new_modules == (("classifier",) if labels is LABELS else ())


def test_what_is_skipped_stays(make, folders):
    loaded = make(skip=["layers.0.mlp", "o_proj"]).load(asked(folders["llama"]))
    plain_ones = {path for path, part in loaded.module.named_modules() if type(part) is nn.Linear}
    mlp = {f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")}
    assert plain_ones == mlp | {f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)} | {"lm_head"}


def test_training_and_evaluation_compute_the_same(make, folders):
    module = make().load(asked(folders["llama"])).module
    with torch.no_grad():
        answers = [module.train(mode)(input_ids=IDS).logits for mode in (True, False, True)]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_gradients_are_those_of_the_weight_that_it_computes_with(make, folders):
    layer = make().load(asked(folders["llama"])).module.model.layers[0].mlp.down_proj
    with torch.no_grad():
        layer.eval()(torch.ones(1, layer.in_features))  # a base is measured before it is trained on
    layer.train()
    x, grad = torch.randn(2, 3, layer.in_features, requires_grad=True), torch.randn(2, 3, layer.out_features)
    layer(x).backward(grad)
    torch.testing.assert_close(x.grad, grad @ dequantised(layer), rtol=1e-4, atol=1e-4)


def test_biases_can_train(make, folders):
    layer = make().load(asked(folders["bert"], "sequence-classification", LABELS)).module.bert.encoder.layer[0].output
    grad = torch.randn(2, 3, layer.dense.out_features)
    layer.dense(torch.randn(2, 3, layer.dense.in_features)).backward(grad)
    torch.testing.assert_close(layer.dense.bias.grad, grad.sum((0, 1)))


def test_a_copy_computes_the_same(make, folders):
    module = make().load(asked(folders["llama"])).module
    copied = copy.deepcopy(module).to("cpu")
    with torch.no_grad():
        assert torch.equal(copied(input_ids=IDS).logits, module(input_ids=IDS).logits)


def test_inputs_in_bfloat16_give_bfloat16(make, folders):
    module = make().load(replace(asked(folders["llama"]), dtype="bfloat16")).module
    assert module.model.layers[0].mlp.up_proj(torch.ones(1, 64, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_unpacking_keeps_no_copy_for_the_backward_pass(make, folders):
    """Else a base of 8 bits would take 16 more while it trains."""
    layer = make().load(asked(folders["llama"])).module.model.layers[0].mlp.down_proj
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(1, layer.in_features, requires_grad=True))
    assert not any(t.is_floating_point() and t.numel() == layer.in_features * layer.out_features for t in kept)


def test_codes_are_those_of_the_libraries(folders):
    weight = plain(asked(folders["llama"])).module.model.layers[0].mlp.up_proj.weight.detach()

    def layer(kind):
        cls, options = KINDS[kind]
        return cls(cls.Config(**options)).load(asked(folders["llama"])).module.model.layers[0].mlp.up_proj

    for kind, nested in (("nf4", False), ("fp4-double", True)):
        packed = quantize_4bit(weight, blocksize=64, quant_type=kind[:3], compress_statistics=nested)
        torch.testing.assert_close(dequantised(layer(kind)), dequantize_4bit(*packed), rtol=0, atol=1e-6)
    with torch.no_grad():
        wanted = bitsandbytes.nn.Linear8bitLt(64, 128, bias=False, has_fp16_weights=False)
        wanted.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False)
        torch.testing.assert_close(dequantised(layer("int8")), wanted.to("cpu").train()(torch.eye(64)).T)
    wanted = nn.Linear(64, 128, bias=False)
    wanted.weight = nn.Parameter(weight)
    quantize_(wanted, Int8WeightOnlyConfig())
    torch.testing.assert_close(dequantised(layer("torchao")), wanted.weight.dequantize())


def test_moving_keeps_what_it_computes(make, folders, monkeypatch):
    """To another device torch moves by putting new parameters into the place of the old."""
    module = make().load(asked(folders["llama"])).module
    with torch.no_grad():
        before, old = module(input_ids=IDS).logits, module.model.layers[0].mlp.up_proj.weight
        monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
        for _ in range(2):
            module.to("cpu")
        assert module.model.layers[0].mlp.up_proj.weight is not old
        assert torch.equal(module(input_ids=IDS).logits, before)


def test_weights_take_the_bytes_that_their_bits_make(folders):
    """4 bits a weight, and a float32 scale for 64 of them: 4.5 bits; with double quantisation 4 + 8/64 + 32/16,384."""
    for double, bits in ((False, 4.5), (True, 4 + 8 / 64 + 32 / (64 * 256))):
        loaded = BitsAndBytesLoader(BitsAndBytesLoader.Config(double_quant=double)).load(asked(folders["llama"]))
        layer = loaded.module.model.layers[0].mlp.up_proj
        state = layer.quant_state
        kept = layer.weight.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
        assert kept * 8 / (64 * 128) == pytest.approx(bits, abs=0.01)


def test_the_fingerprint_is_that_of_the_weights_before(make, folders):
    request = asked(folders["llama"])
    assert make().load(request).fingerprint == fingerprint_base(plain(request))


@pytest.mark.parametrize(("options", "runs"), [({}, False), ({"trust_remote_code": True}, True)])
def test_code_that_the_reader_runs_is_reported(make, folders, options, runs):
    loader = make(loader={"name": "transformers", **options})
    assert (loader.runs_code(folders["llama"]) is not None) == runs


def test_a_reader_that_quantises_is_refused(make, folders, monkeypatch):
    monkeypatch.setattr(loaders, "registry_of", lambda: registry_of({"quant": ftengine_quant}))
    with raises(SourceError, "torchao"):
        make(loader="torchao").check_source(folders["llama"])


def test_wrong_options_of_a_reader_are_refused_by_key(make, folders):
    with raises(RecipeError, "model.loader.loader.branch", "transformers"):
        make(loader={"name": "transformers", "branch": "main"}).check_source(folders["llama"])


def test_without_torchao_its_loader_says_what_to_install(folders, monkeypatch):
    monkeypatch.setattr(loaders, "find_spec", lambda name: None)
    with raises(SourceError, "ftengine-quant[torchao]"):
        TorchaoLoader().check_source(folders["llama"])


def test_an_unknown_reader_is_refused_by_key(make, folders):
    with raises(UnknownName, "model.loader.loader", "transformers"):
        make(loader="transformer").check_source(folders["llama"])


def test_a_source_that_nobody_reads_is_refused(make):
    with raises(SourceError, "model.source", "no such thing"):
        make().check_source("no such thing")


def test_a_model_without_linear_layers_is_refused_before_weights_are_read(make, folders):
    with raises(SourceError, "GPT2LMHeadModel"):
        make().load_skeleton(asked(folders["gpt2"]))


def test_rows_that_blocks_do_not_fill_are_refused_in_4_bits(tmp_path):
    """The CPU kernels of bitsandbytes 0.50 count blocks by rows, its quantiser through the whole weight."""
    request = asked(str(llama(tmp_path / "odd", intermediate_size=96)))
    with raises(SourceError, "model.layers.0.mlp.down_proj", "96", "64"):
        BitsAndBytesLoader().load_skeleton(request)
    BitsAndBytesLoader(BitsAndBytesLoader.Config(skip=["down_proj"])).load_skeleton(request)
    BitsAndBytesLoader(BitsAndBytesLoader.Config(bits=8)).load(request)


def test_skipping_what_is_not_there_is_refused(make, folders):
    with raises(NoMatch, "model.loader.skip", "oproj", "o_proj"):
        make(skip=["oproj"]).load_skeleton(asked(folders["llama"]))


@pytest.mark.parametrize("options", [{"bits": 2}, {"quant_type": "int4"}, {"compute_dtype": "int8"}, {"skip": "("}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        BitsAndBytesLoader.Config(**options)
