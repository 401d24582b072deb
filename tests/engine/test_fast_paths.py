"""Fast paths in a run: those that compute what the model does are used and recorded, others are left out by name."""

import itertools
import types
from contextlib import contextmanager, nullcontext

import pytest
import torch
from installed import registry_with
from rows import write_rows
from runs import Heard
from torch import nn
from torch.nn import functional as F

from ftengine import api, fine_tune, plan, registry_of
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import prepare_data
from ftengine.errors import PluginError, RecipeError, SavedPartDiffers, UnknownName
from ftengine.run.directory import RunDirectory
from ftengine.run.records import Environment
from ftengine.training.probe import Outcome, ProbeBatch
from ftengine_builtins.fast_paths import grouped_layers
from ftengine_builtins.fast_paths.shared_prefix import sharing


class Replacing(api.FastPath):
    """Replace a Llama's activations."""

    name = "replacing"
    entered = 0

    @contextmanager
    def activate(self, loaded, context):
        type(self).entered += 1
        found = [part for part in loaded.module.modules() if type(part).__name__ == "SiLUActivation"]
        for part in found:
            part.forward = self.compute
        try:
            yield {"activations": len(found)} if found else None
        finally:
            for part in found:
                del part.forward

    def compute(self, x):
        return F.silu(x)


class Values(Replacing):
    """Half a percent too much."""

    def compute(self, x):
        return 1.005 * F.silu(x)


class Slopes(Replacing):
    """The values alone are right."""

    def compute(self, x):
        return F.silu(x).detach() + 1.005 * (F.silu(x) - F.silu(x).detach())


class Failing(Replacing):
    def compute(self, x):
        raise OSError("no such kernel")


class Nothing(Replacing):
    @contextmanager
    def activate(self, loaded, context):
        yield None


class Elsewhere(Replacing):
    def check_device(self, device):
        raise RecipeError("it needs a quantum computer")


@pytest.fixture
def short(chat_recipe):
    def make(fast_paths="auto", **overrides):
        return chat_recipe(train__max_steps=1, train__fast_paths=fast_paths, **overrides)

    return make


def run(recipe, path=Replacing):
    """Run a recipe beside a fast path; return what is recorded of that, and what was said."""
    heard, path.entered = Heard(), 0
    directory = RunDirectory(fine_tune(recipe, registry=registry_with(path), listener=heard).path)
    return Environment.read(directory).fast_paths, heard.said


@pytest.fixture
def passes(chat_recipe, tmp_path, monkeypatch):
    """Plan a recipe with a cache of one's own; return how many passes compared paths, and what was said of them."""
    monkeypatch.setenv("FTENGINE_CACHE", str(tmp_path / "own"))
    count, passed = [], ProbeBatch._passed
    monkeypatch.setattr(ProbeBatch, "_passed", lambda *args, **kwargs: (count.append(1), passed(*args, **kwargs))[1])

    def made(**changes):
        heard = Heard()
        count.clear()
        plan(chat_recipe(**{"evaluation__reuse_base": True, **changes}), listener=heard)
        return len(count), [text for text in heard.said if "fast path" in text or "without it" in text]

    return made


def test_what_was_compared_is_compared_again_only_where_something_is_another(passes):
    compared, said = passes()
    assert compared >= 2
    assert "grouped-layers" in said[-1]
    assert passes() == (0, said)
    assert passes(train__learning_rate=0.1) == (0, said)
    for changes in ({"strategy__rank": 2}, {"seed": 1}, {"train__fast_paths": ["grouped-layers"]}):
        assert passes(**changes)[0] >= 2
    assert passes(evaluation__reuse_base=False)[0] >= 2


@pytest.mark.slow
def test_what_differs_is_not_taken_for_compared(passes, monkeypatch):
    with monkeypatch.context() as patch:
        right = grouped_layers.lowrank_linears
        patch.setattr(grouped_layers, "lowrank_linears", lambda *args: [1.005 * y for y in right(*args)])
        for _ in range(2):
            compared, said = passes()
            assert compared >= 3
            assert "goes on without it" in said[0]
            assert "grouped-layers" not in said[-1]
    assert passes()[0] >= 2


@pytest.mark.slow
def test_that_a_model_shares_prefixes_is_probed_once(passes, monkeypatch):
    checks, check = [], sharing._check
    asked = ({}, {}, {"train__learning_rate": 0.1}, {"strategy__rank": 2}, {"evaluation__reuse_base": False})
    monkeypatch.setattr(sharing, "_check", lambda model: (checks.append(1), 0)[1])
    assert not any("shared-prefix" in passes()[1][-1] for _ in range(2))
    assert len(checks) == 2  # what does not is asked again
    monkeypatch.setattr(sharing, "_check", lambda model: (checks.append(1), check(model))[1])
    for changes, times in zip(asked, (1, 0, 0, 1, 1), strict=True):
        checks.clear()
        assert "shared-prefix" in passes(**changes)[1][-1]
        assert len(checks) == times, changes


def test_off_enters_none_and_auto_all(short, tmp_path):
    used, _ = run(short("off"))
    assert (used, Replacing.entered) == ({}, 0)
    used, _ = run(short("auto", output=str(tmp_path / "auto")))
    assert used["replacing"].active
    assert len(used) > 3
    assert any(not one.active and one.reason for one in used.values())


@pytest.mark.parametrize("path", [Values, Slopes, Failing])
def test_what_computes_something_else_is_left_out_by_name(short, path):
    used, said = run(short(), path)
    assert not used["replacing"].active
    assert any(one.active for one in used.values())  # the others are not suspected
    (told,) = (text for text in said if "'replacing'" in text and "goes on without it" in text)
    assert ("OSError" in told) == (path is Failing)


def test_a_model_that_computes_something_else_each_time_is_to_blame_and_no_path(short, monkeypatch):
    def counting(strategy, loaded):
        prepare(strategy, loaded)
        passes = itertools.count()
        loaded.module.model.norm.register_forward_hook(lambda part, args, y: y * (1 + next(passes) / 100))

    cls = registry_of().get("strategy", "lora").cls
    prepare = cls.prepare
    monkeypatch.setattr(cls, "prepare", counting)
    recipe, heard = short(["replacing"]), Heard()
    with pytest.raises(SavedPartDiffers):
        fine_tune(recipe, registry=registry_with(Replacing), listener=heard)
    (told,) = (text for text in heard.said if "second time" in text)
    assert "keeps a state" in told


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        (Values, PluginError, "does not compute what LlamaForCausalLM does"),
        (Nothing, RecipeError, "finds nothing"),
        (Elsewhere, RecipeError, "quantum"),
    ],
)
def test_one_that_the_recipe_names_has_to_be_of_use(short, path, error, text):
    with pytest.raises(error, match=rf"'replacing'.*{text}.* train\.fast_paths"):
        run(short(["replacing"]), path)


def test_one_that_suits_no_device_or_nothing_is_quietly_left_out(short, tmp_path):
    for path in (Nothing, Elsewhere):
        used, said = run(short(output=str(tmp_path / path.__name__)), path)
        assert not used["replacing"].active
        assert not any("without it" in text for text in said)


def test_names_that_are_wrong_are_found_before_anything_is_read(short):
    for names in (["replacin"], ["lora"]):
        with pytest.raises(UnknownName, match=r"train\.fast_paths\.0"):
            run(short(names))
    with pytest.raises(RecipeError, match="twice"):
        run(short(["replacing", "replacing"]))


def test_an_order_that_loses_an_example_is_refused(short):
    class Losing(Replacing):
        def computed_tokens(self, batch):
            return 1

        def order(self, batch):
            return [0] * len(batch["input_ids"])

    with pytest.raises(PluginError):
        run(short(["replacing"]), Losing)


@pytest.mark.parametrize(("before", "fault"), [((True, False), ""), ((False,), "in bfloat16, the loss differs by ")])
def test_rounding_is_as_far_as_half_precision_goes_with_dropout_or_without(monkeypatch, before, fault):
    """The model's own way is near float32 without dropout, by chance, and the other no farther than it is with it."""
    probe = probe_of(monkeypatch, {(True, True): 0.0, (True, False): 0.2, (False, True): 0.0, (False, False): 0.01})
    told = [probe.fault(nullcontext, training=training) for training in before][-1]
    assert told.startswith(fault)
    assert bool(told) == bool(fault)


def probe_of(monkeypatch, distances, rerounded=(0.0,) * 3):
    """Return a probe of a model whose loss is so far from 1 by mode and width, and 0.25 by a way in half precision."""

    def passed(self, training, wide, way=None, reround=None):
        own = distances[training, wide] if reround is None else rerounded[reround]
        moved = own if way is None else (0.0 if wide else 0.25)
        return Outcome({"the loss": torch.ones(1) + moved})

    monkeypatch.setattr(ProbeBatch, "_passed", passed)
    loaded = types.SimpleNamespace(module=nn.Identity())
    return ProbeBatch(loaded, None, {}, torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize(("rerounded", "found"), [((0.01, 0.02, 0.2), False), ((0.01, 0.02, 0.03), True)])
def test_a_way_that_is_as_far_as_the_model_rounded_otherwise_is_no_fault(monkeypatch, rerounded, found):
    distances = {(True, True): 0.0, (True, False): 0.01}
    fault = probe_of(monkeypatch, distances, rerounded).fault(nullcontext, training=True)
    assert bool(fault) is found


@pytest.mark.parametrize(("window", "most"), [(None, 160), (300, 332), (64, 160)])
def test_a_probe_of_long_rows_is_cut_to_what_shows_windows(chat_recipe, tmp_path, window, most):
    rows = [{"text": f"{i} " + "good morning to you " * (100 + i)} for i in range(8)]
    data = {"data__train": write_rows(tmp_path / "long.jsonl", rows), "data__validation": None}
    split = prepare_data(Experiment.open(chat_recipe(**data, task={"name": "causal-lm", "max_length": 400})))
    loaded = types.SimpleNamespace(module=nn.Identity())
    loaded.module.config = types.SimpleNamespace(sliding_window=window)
    probe = ProbeBatch.of(split.encoded["train"], loaded, torch.device("cpu"), torch.float32)
    assert probe._batch["input_ids"].shape == (2, most)
    assert bool((probe._batch["labels"] >= 0).any(1).all())


@pytest.mark.parametrize("truncate", ["left", "right"])
def test_a_probe_keeps_the_part_of_a_row_that_trains(chat_recipe, tmp_path, truncate):
    rows = [{"prompt": f"{i} " + "good morning to you " * (20 + i), "completion": "yes"} for i in range(8)]
    data = {"data__train": write_rows(tmp_path / "long.jsonl", rows), "data__validation": None}
    task = {"name": "causal-lm", "max_length": 500, "truncate": truncate}
    split = prepare_data(Experiment.open(chat_recipe(**data, task=task))).encoded["train"]
    assert split.sequences.min() > 160
    loaded = types.SimpleNamespace(module=nn.Identity())
    probe = ProbeBatch.of(split, loaded, torch.device("cpu"), torch.float32)
    assert probe._batch["input_ids"].shape == (2, 160)
    assert bool((probe._batch["labels"] >= 0).any(1).all())
