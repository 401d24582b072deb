"""A merge is judged by the folder that it writes, opened without ftengine."""

import pytest
import torch
from expected import raises
from installed import registry_with
from torch import nn
from torch.nn.utils import parametrize

from ftengine import api, fine_tune, load_run
from ftengine.engine import merge
from ftengine.errors import InputError, MergeChangedOutputs

LAYER = "bert.encoder.layer.0.output.dense"


class Doubled(nn.Module):
    """A parametrization: twice the weight."""

    def forward(self, weight):
        return 2 * weight


class Scaled(api.Strategy):
    """Train biases, and double what a layer gives; `merge` has to fold that into its weights."""

    name = "scaled"

    def prepare(self, loaded):
        for name, parameter in loaded.module.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
        layer = loaded.module.get_submodule(LAYER)
        self.hook = layer.register_forward_hook(lambda layer, inputs, output: 2 * output)

    def check_merge(self):
        pass

    def merge(self, loaded):
        layer = loaded.module.get_submodule(LAYER)
        self.hook.remove()
        for parameter in layer.parameters():
            parameter.data *= 2


class LeftHook(Scaled):
    """Leave the hook where it is."""

    def merge(self, loaded):
        pass


class LeftParametrization(Scaled):
    """Double the weight by a parametrization."""

    def merge(self, loaded):
        layer = loaded.module.get_submodule(LAYER)
        self.hook.remove()
        layer.bias.data *= 2
        parametrize.register_parametrization(layer, "weight", Doubled())


class LeftParameter(Scaled):
    """Leave a parameter that does nothing any more."""

    def merge(self, loaded):
        super().merge(loaded)
        loaded.module.get_submodule(LAYER).factor = nn.Parameter(torch.ones(1))


@pytest.fixture(scope="module")
def run(tmp_path_factory, bert_folder, label_file):
    from ftengine import Recipe

    content = {
        "model": {"source": str(bert_folder)},
        "task": "text-classification",
        "data": {"train": str(label_file), "validation": 0.2},
        "strategy": "scaled",
        "train": {"max_steps": 4, "batch_size": 8, "learning_rate": 0.01, "precision": "float32"},
        "evaluation": {"resamples": 100},
        "output": str(tmp_path_factory.mktemp("scaled") / "run"),
    }
    return fine_tune(Recipe.make(content), registry=registry_with(Scaled)).path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_that_folds_everything_is_written(run, tmp_path, dtype):
    report = load_run(run, registry=registry_with(Scaled)).merge(tmp_path / "merged", dtype)
    assert report.difference <= report.tolerance < report.effect
    assert (tmp_path / "merged" / "model.safetensors").exists()


def test_a_dtype_that_weights_are_not_stored_in_is_refused(run, tmp_path):
    with raises(InputError, "'int8'", "bfloat16"):
        load_run(run, registry=registry_with(Scaled)).merge(tmp_path / "merged", "int8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        (LeftHook, "a hook"),
        (LeftParametrization, "keys that do not fit"),
        (LeftParameter, "keys that do not fit: 1,"),
    ],
)
def test_what_a_merge_leaves_in_the_model_alone_is_found(run, tmp_path, strategy, told, dtype):
    with raises(MergeChangedOutputs, told) as error:
        load_run(run, registry=registry_with(strategy)).merge(tmp_path / "merged", dtype)
    assert "strategy 'scaled' of odd unversioned" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_no_probe_shows_is_compared_in_the_written_files(run, tmp_path, monkeypatch):
    def with_a_fault(module, processor, folder):
        table = module.get_input_embeddings().weight.data
        whole = table.clone()
        table[-1, 0] += 1e-6  # of a token that is not in the probe
        save_model(module, processor, folder)
        table.copy_(whole)

    save_model = merge.save_model
    monkeypatch.setattr(merge, "save_model", with_a_fault)
    with raises(MergeChangedOutputs, "bert.embeddings.word_embeddings.weight"):
        load_run(run, registry=registry_with(Scaled)).merge(tmp_path / "merged", "float32")
    assert not list(tmp_path.iterdir())
