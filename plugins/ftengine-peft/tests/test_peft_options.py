"""Options, targets, merging and loading: what works, and what is refused and how."""

import pytest
import torch
from expected import raises
from peft_models import BATCH, LABEL_BATCH, LM_BATCH, load_bert, load_gpt2, load_llama
from pydantic import ValidationError
from safetensors.torch import load_file

from ftengine.errors import BaseMismatch, NoMatch, NotMergeable, RecipeError, RunError
from ftengine.testing import check_strategy
from ftengine_peft.offered import strategies

METHODS = {method.name: method for method in strategies()}


def make(name, **options):
    method = METHODS[name]
    return method(method.Config(**options))


def prepared(name, load=load_llama, **options):
    torch.manual_seed(0)
    strategy, loaded = make(name, **options), load()
    strategy.prepare(loaded)
    return strategy, loaded


def saved(folder, name, load=load_llama, **options):
    strategy, loaded = prepared(name, load, **options)
    folder.mkdir()
    strategy.save(loaded, folder)
    return folder


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("peft-ia3", {"r": 8}, "Extra inputs"),
        ("peft-vera", {"r": "many"}, "valid integer"),
        ("peft-lora", {"bias": "some"}, "lora_only"),
        ("peft-lora", {"task_type": "CAUSAL_LM"}, "Extra inputs"),
        ("peft-lora", {"init_lora_weights": "eva"}, "quantised base"),
        ("peft-lora", {"target_modules": "q_proj["}, "not a regular expression"),
        ("peft-lora", {"target_modules": []}, "name modules"),
        ("peft-adaption-prompt", {"adapter_layers": 2}, "adapter_len"),
        ("peft-ia3", {"target_modules": ["k_proj"], "feedforward_modules": ["up_proj"]}, "should be a subset"),
        ("peft-psoft", {"psoft_svd_lowrank_niter": 3}, "is only used when"),
        ("peft-vera", {"r": -1}, "equal to 0"),
        ("peft-adalora", {"target_r": 12}, "target_r"),
        ("peft-adalora", {"deltaT": 0}, "deltaT"),
        ("peft-adalora", {"total_step": 9}, "Extra inputs"),
    ],
)
def test_options_are_validated(name, options, said):
    with raises(ValidationError, said):
        make(name, **options)


def test_words_of_other_strategies_lead_to_what_a_method_has():
    words = {name: METHODS[name].Config.meant for name in ("peft-lora", "peft-vera", "peft-ia3", "peft-loha")}
    assert words["peft-lora"]["alpha"] == "lora_alpha"
    assert words["peft-vera"]["dropout"] == "vera_dropout"
    assert words["peft-ia3"]["targets"] == "target_modules"
    assert "rank" not in words["peft-ia3"]
    assert "alpha" not in words["peft-loha"]  # it has this very option


@pytest.mark.parametrize("method", METHODS.values(), ids=str)
def test_every_option_has_a_description_of_one_line(method):
    for name, field in method.Config.model_fields.items():
        assert field.description, name
        assert "\n" not in field.description


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (
            ["q_porj"],
            "'q_proj'",
        ),
        (["q_proj", "query"], "'query'"),
        ("q_proj", "'q_proj'"),
    ],
)
def test_targets_that_match_nothing_are_refused(targets, said):
    with raises(NoMatch, said):
        prepared("peft-loha", target_modules=targets)


@pytest.mark.parametrize(
    ("name", "load", "options", "said"),
    [
        (
            "peft-oft",
            load_llama,
            {"oft_block_size": 5, "target_modules": ["q_proj"]},
            "oft_",
        ),
        ("peft-vera", load_llama, {"target_modules": ["input_layernorm"]}, "No layers types compatible"),
        ("peft-boft", load_llama, {"boft_n_butterfly_factor": 2}, "boft_n_butterfly_factor"),
        ("peft-lora", load_llama, {"rank_pattern": {"query": 4}}, "rank_pattern"),
        ("peft-lora", load_llama, {"exclude_modules": ["query"]}, "no modules were excluded"),
        ("peft-ia3", load_llama, {"target_modules": "all-linear"}, "subset"),
        ("peft-ln-tuning", load_bert, {}, "specify `target_modules`"),
        ("peft-trainable-tokens", load_llama, {}, "trains nothing"),
        ("peft-adaption-prompt", load_bert, {"adapter_len": 2, "adapter_layers": 1}, "Unsupported model type"),
    ],
)
def test_what_peft_refuses_is_an_error_of_the_recipe(name, load, options, said):
    with raises(RecipeError, said):
        prepared(name, load, **options)


@pytest.mark.parametrize("targets", [["classifier"], "classifier"])
def test_a_head_trains_whole_and_is_not_adapted(targets):
    with raises(NoMatch, "classifier"):
        prepared("peft-lokr", load_bert, target_modules=targets)
    with raises(NoMatch, "classifier"):
        prepared("peft-lokr", load_bert, target_modules=".*(query|classifier)")


def test_matches_tell_which_pattern_took_what():
    strategy, _ = prepared("peft-boft", target_modules=["q_proj", "layers.1.mlp.up_proj"])
    assert strategy.matches() == {
        "layers.1.mlp.up_proj": ["model.layers.1.mlp.up_proj"],
        "q_proj": [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)],
    }
    strategy, _ = prepared("peft-boft")
    assert len(strategy.matches()["all-linear"]) == 14
    strategy, _ = prepared("peft-ia3")
    assert set(strategy.matches()) == {"k_proj", "v_proj", "down_proj"}


def test_conv1d_layers_are_adapted():
    check_strategy(lambda: make("peft-lora"), load_gpt2, LM_BATCH)


@pytest.mark.parametrize(
    ("options", "load", "batch"),
    [
        ({"bias": "all"}, load_bert, LABEL_BATCH),
        ({"init_lora_weights": "pissa"}, load_llama, LM_BATCH),
        ({"use_dora": True}, load_llama, LM_BATCH),
        ({"r": 4, "rank_pattern": {"k_proj": 2}}, load_llama, LM_BATCH),
    ],
)
def test_variants_of_lora_conform(options, load, batch):
    check_strategy(lambda: make("peft-lora", **options), load, batch)


def test_trained_biases_are_saved(tmp_path):
    folder = saved(tmp_path / "a", "peft-lora", load_bert, bias="lora_only", target_modules=["query"])
    biases = [key for key in load_file(folder / "adapter_model.safetensors") if key.endswith("query.base_layer.bias")]
    assert len(biases) == 2


def test_adalora_refuses_a_run_in_which_no_rank_moves():
    strategy, _ = prepared("peft-adalora", tinit=3, tfinal=4)
    strategy.regularizer(8)
    with raises(RecipeError, "tinit (3)", "tfinal (4)"):
        strategy.regularizer(7)


def test_a_step_that_was_left_out_says_nothing_of_ranks():
    strategy, loaded = prepared("peft-adalora")
    regularizer, model = strategy.regularizer(9), loaded.module.train()
    model(**LM_BATCH).loss.backward()
    next(p for name, p in model.named_parameters() if "lora_A" in name).grad[0] = float("inf")
    regularizer.on_step_end(model, 1)
    averages = [x for name, x in regularizer.state_dict().items() if name.startswith("exp_avg")]
    assert averages
    assert not any(x.any() for x in averages)


def test_scales_do_not_decay():
    strategy, loaded = prepared("peft-ia3", load_bert)
    loaded.module.classifier.requires_grad_(True)
    names = {id(p): name for name, p in loaded.module.named_parameters()}
    decaying = [
        names[id(p)]
        for group in strategy.param_groups(loaded.module, 0.1, 0.01)
        for p in group["params"]
        if group["weight_decay"]
    ]
    assert decaying == ["classifier.weight"]


def bfloat16_llama():
    loaded = load_llama()
    loaded.module.to(torch.bfloat16)
    return loaded


def test_gradients_of_osf_stay_in_their_subspace_on_a_bfloat16_base():
    _, loaded = prepared("peft-osf", bfloat16_llama)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loaded.module(**LM_BATCH).loss
    loss.backward()
    trained = {n: p for n, p in loaded.module.named_parameters() if n.endswith("q_proj.osf_svd_params.default.U_low")}
    assert trained
    for u in trained.values():
        basis = u.detach()  # before the first step
        outside = u.grad - basis @ (basis.T @ u.grad)
        assert outside.norm() < 0.01 * u.grad.norm()


def test_what_a_rounded_base_would_change_is_refused():
    with raises(RecipeError, "bfloat16", "train.precision"):
        prepared("peft-psoft", bfloat16_llama, r=8)


def test_it_generates_and_checkpoints_gradients():
    module = prepared("peft-vera")[1].module
    module.train()(**LM_BATCH).loss.backward()
    plain = {name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad}
    module.zero_grad()
    module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module(**LM_BATCH).loss.backward()
    for name, gradient in plain.items():
        torch.testing.assert_close(module.get_parameter(name).grad, gradient)
    answer = module.eval().generate(**BATCH, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert answer.shape == (2, 9)


def test_shared_weights_are_not_merged():
    strategy, loaded = prepared("peft-lora", lambda: load_llama(tied=True), target_modules=["embed_tokens"])
    with raises(NotMergeable, "model.embed_tokens"):
        strategy.merge(loaded)


def test_what_has_no_merged_form_is_refused_before_a_model_loads():
    for name, options in [("peft-lily", {}), ("peft-adaption-prompt", {"adapter_len": 2, "adapter_layers": 1})]:
        with raises(NotMergeable, "input"):
            make(name, **options).check_merge()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"lora_alpha": 16}, BaseMismatch, "lora_alpha 8"),
        ({"r": 4}, BaseMismatch, "r 8"),
        ({"target_modules": ["q_proj"]}, BaseMismatch, "keys"),
    ],
)
def test_an_adapter_of_other_options_is_refused(options, error, said, tmp_path):
    folder = saved(tmp_path / "a", "peft-lora")
    strategy, loaded = prepared("peft-lora", **options)
    before = {name: p.clone() for name, p in loaded.module.named_parameters()}
    with raises(error, said):
        strategy.load(loaded, folder)
    assert all(before[name].equal(p) for name, p in loaded.module.named_parameters())


def test_an_adapter_of_another_method_or_none_is_refused(tmp_path):
    folder = saved(tmp_path / "a", "peft-loha")
    strategy, loaded = prepared("peft-lokr")
    with raises(RunError, "'LOHA'", "'LOKR'"):
        strategy.load(loaded, folder)
    with pytest.raises(RunError):
        strategy.load(loaded, tmp_path)


def test_pickles_are_not_read(tmp_path):
    folder = saved(tmp_path / "a", "peft-loha")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    strategy, loaded = prepared("peft-loha")
    with raises(RunError, "adapter_model.safetensors"):
        strategy.load(loaded, folder)
