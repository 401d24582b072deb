"""Optimisers: today's AdamW is torch's, every one of them resumes bit for bit, and a third party's fits in."""

import types

import pytest
import torch
from expected import raises
from runs import curve, interrupt
from torch import nn

from ftengine import Recipe, fine_tune, hookimpl, load_run, registry_of
from ftengine.api import Config, Optimizer
from ftengine.errors import PluginError, RecipeError, UnknownName
from ftengine.training.optimizer import optimizer_bytes


def build(spec):
    return registry_of().build("optimizer", spec, "train.optimizer")


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Conv1d(8, 4, 1), nn.Linear(5, 3))


def groups(module, lr=0.05):
    """Matrices decay, all else does not, as strategies group them."""
    kinds = [[p for p in module.parameters() if (p.ndim > 1) is wanted] for wanted in (True, False)]
    return [{"params": p, "lr": lr, "weight_decay": wd} for p, wd in zip(kinds, (0.1, 0.0), strict=True)]


def step(module, optimizer, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, 5, 6)
    hidden = module[1](module[0](x))
    optimizer.zero_grad()
    module[3](module[2](hidden.transpose(1, 2))).square().mean().backward()
    optimizer.step()


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize(
    ("spec", "peer"),
    [
        ("adamw", lambda g: torch.optim.AdamW(g, fused=True)),
        (
            {"name": "adamw", "betas": [0.8, 0.9], "eps": 1e-3},
            lambda g: torch.optim.AdamW(g, betas=(0.8, 0.9), eps=1e-3),
        ),
        ("sgd", lambda g: torch.optim.SGD(g, momentum=0.9)),
        ({"name": "sgd", "momentum": 0.5, "nesterov": True}, lambda g: torch.optim.SGD(g, momentum=0.5, nesterov=True)),
        ("adafactor", torch.optim.Adafactor),
    ],
)
def test_steps_are_torchs(spec, peer):
    ours, theirs = model(), model()
    mine, other = build(spec).build(groups(ours)), peer(groups(theirs))
    for seed in range(5):
        step(ours, mine, seed)
        step(theirs, other, seed)
    assert all(torch.allclose(p, weights(theirs)[name], atol=1e-7) for name, p in weights(ours).items())


def test_muon_takes_the_matrices_and_adamw_the_others():
    ours, muon, adamw = model(), model(), model()
    combined = build("muon").build(groups(ours))
    matrices, _ = groups(muon)
    matrices["params"] = [p for p in matrices["params"] if p.ndim == 2]
    alone = torch.optim.Muon([matrices], adjust_lr_fn="match_rms_adamw")
    plain = torch.optim.AdamW(groups(adamw))
    step(ours, combined, 0)
    step(muon, alone, 0)
    step(adamw, plain, 0)
    for name, parameter in weights(ours).items():
        expected = weights(muon if parameter.ndim == 2 else adamw)[name]
        torch.testing.assert_close(parameter, expected)
    assert {p.ndim for p in ours.parameters()} == {1, 2, 3}


def test_muon_follows_the_learning_rate_also_after_load_state_dict():
    """Accelerate loads an optimiser's own state when it takes it over, which replaces its groups."""
    module = model()
    optimizer = build("muon").build(groups(module))
    step(module, optimizer, 0)
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = weights(module)
    step(module, optimizer, 1)
    assert all(torch.equal(p, before[name]) for name, p in weights(module).items())
    counts = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
    assert counts
    assert set(counts) == {2}


# Checkpoints


class EightBit(Optimizer):
    """Keep what a step needs in eight bits, beside tables that all parameters share, counts and lists."""

    name = "eight-bit"

    class Config(Config):
        """Its one option."""

        beta: float = 0.9

    def build(self, param_groups):
        return Quantised(param_groups, self.config.beta)


class Quantised(torch.optim.Optimizer):
    """Momentum in uint8, as bitsandbytes' optimisers keep theirs."""

    def __init__(self, param_groups, beta):
        super().__init__(param_groups, {"beta": beta, "seen": 0, "largest": -float("inf"), "map": lambda x: x})
        self.table = torch.linspace(-1, 1, 256)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["seen"] += 1
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "codes": torch.full_like(p, 128, dtype=torch.uint8), "table": self.table}
                    state |= {"scale": torch.zeros((), dtype=torch.bfloat16), "history": [], "name": "p"}
                momentum = self.table[state["codes"].long()] * state["scale"].float()
                momentum = group["beta"] * momentum + p.grad
                scale = momentum.abs().max().bfloat16()
                codes = (momentum / scale.float().clamp(min=1e-12) * 127.5 + 127.5).round().clamp(0, 255)
                state |= {"step": state["step"] + 1, "scale": scale, "codes": codes.to(torch.uint8)}
                state["history"] = [*state["history"], momentum.mean()][-2:]
                group["largest"] = max(group["largest"], float(momentum.max()))
                p -= group["lr"] * momentum


def plugin_of(*classes):
    plugin = types.ModuleType("mine")
    plugin.ftengine_optimizers = hookimpl(lambda: list(classes))
    plugin.ftengine_optimizers.__name__ = "ftengine_optimizers"
    return registry_of({"mine": plugin})


class KeepsObjects(Optimizer):
    """Keep what no file can hold."""

    name = "keeps-objects"

    def build(self, param_groups):
        optimizer = torch.optim.SGD(param_groups)
        optimizer.register_step_post_hook(
            lambda o, *_: [s.update(x=object()) for s in map(o.state.__getitem__, some(o))]
        )
        return optimizer


class KeepsMore(Optimizer):
    """Keep state that is of no parameter, and ask for a real device."""

    name = "keeps-more"

    def build(self, param_groups):
        optimizer = torch.optim.SGD(param_groups)
        optimizer.register_step_post_hook(lambda o, *_: o.state["all"].update(x=1))
        optimizer.register_step_pre_hook(self.look)
        return optimizer

    def look(self, optimizer, *_):
        assert not any(p.is_meta for p in some(optimizer))


def some(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


class HalfBuilt(Optimizer):
    """Leave the second group out."""

    name = "half-built"

    def build(self, param_groups):
        return torch.optim.SGD([{**group, "params": group["params"][:1]} for group in param_groups])


class NoOptimizer(Optimizer):
    """Return something else."""

    name = "no-optimizer"

    def build(self, param_groups):
        return param_groups


@pytest.fixture
def content(bert_folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "match {i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(24)))
    return {
        "model": {"source": str(bert_folder)},
        "task": "text-classification",
        "data": {"train": str(rows), "validation": None},
        "strategy": {"name": "lora", "dropout": 0.1},
        "train": {
            "max_steps": 5,
            "learning_rate": 0.01,
            "batch_size": 4,
            "precision": "float32",
            "checkpoint_every": 2,
        },
        "evaluation": {"resamples": 100, "training_sample": None},
        "output": str(tmp_path / "run"),
    }


@pytest.mark.slow
def test_a_third_partys_eight_bits_resume(content, tmp_path, monkeypatch):
    import ftengine.engine.experiment as experiment

    monkeypatch.setattr(experiment, "Registry", lambda: plugin_of(EightBit))
    content["train"]["optimizer"] = {"name": "eight-bit", "beta": 0.5}
    whole = fine_tune(Recipe.make({**content, "output": str(tmp_path / "whole")}))
    killed = Recipe.make({**content, "output": str(tmp_path / "killed")})
    interrupt(killed, after=3)
    assert curve(fine_tune(killed, resume=True).path) == curve(whole.path)
    monkeypatch.undo()
    assert len(list(load_run(whole.path).predict([{"text": "match"}]))) == 1  # without the plugin, which only trained


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (KeepsObjects, "type object"),
        (KeepsMore, "'all'"),
        (HalfBuilt, "'half-built'"),
        (NoOptimizer, "'no-optimizer'"),
    ],
)
def test_a_wrong_optimizer_is_reported(content, cls, message):
    content["train"]["optimizer"] = cls.name
    with raises(PluginError, message):
        fine_tune(Recipe.make(content), registry=plugin_of(cls))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("adam", UnknownName, "'adamw'"),
        ({"name": "adamw", "betas": [0.9, 1]}, RecipeError, "train.optimizer.betas"),
        ({"name": "sgd", "momentum": 0, "nesterov": True}, RecipeError, "train.optimizer.nesterov"),
        ({"name": "muon", "rank": 3}, RecipeError, "train.optimizer.rank"),
    ],
)
def test_wrong_optimizers_are_refused_before_anything_loads(content, spec, error, message):
    content["train"]["optimizer"], content["model"]["source"] = spec, "nowhere"
    with raises(error, message):
        fine_tune(Recipe.make(content))


@pytest.mark.parametrize(
    ("name", "least", "most"), [("adamw", 8, 8.5), ("sgd", 4, 4), ("muon", 4, 6), ("adafactor", 0.1, 2)]
)
def test_plan_counts_the_state_of_each(name, least, most):
    module = nn.Linear(64, 64)
    size = sum(p.numel() for p in module.parameters())
    assert least * size <= optimizer_bytes(build(name), groups(module)) <= most * size
    assert all(p.grad is None for p in module.parameters())
