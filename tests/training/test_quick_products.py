"""Products of float32 while a model trains, is tried and answers."""

import torch
from torch import nn

from ftengine.api import LoadedModel
from ftengine.ops import products
from ftengine.ops.library import use_onednn
from ftengine.parallel.arithmetic import answering
from ftengine.testing import training_context
from ftengine.training.fast_paths import FastPaths


def test_training_and_answers_take_what_is_quicker_and_only_meanwhile():
    layer, x = nn.Linear(8, 8), torch.randn(9, 8)
    paths = FastPaths([], LoadedModel(layer, None, "", None), training_context(), {})
    with use_onednn(1):
        for context in (paths.active(), answering(layer)):
            with context, torch.profiler.profile() as profile:
                layer(x)
            assert "mkldnn::_linear_pointwise" in {event.key for event in profile.key_averages()}
            assert products._USE.users == 0
