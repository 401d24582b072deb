"""The contracts: what a plugin implements, a file a kind, and the small objects that cross between rooms.

Nothing here imports torch at run time, so that `--help`, `plugins list` and recipe errors stay fast.
"""

from ftengine.api.augmenter import Augmenter, RandomSource
from ftengine.api.component import Component, Config
from ftengine.api.evaluator import Difference, EvaluationContext, Evaluator, Judgement, Metric
from ftengine.api.listener import Listener, SilentListener, iterate
from ftengine.api.loader import ModelLoader
from ftengine.api.regularizer import Regularizer
from ftengine.api.strategy import Strategy
from ftengine.api.task import Task
from ftengine.api.types import Batch, Example, Features, Labels, LoadedModel, LoadRequest, Prediction
from ftengine.errors import DataError

__all__ = [
    "Augmenter",
    "Batch",
    "Component",
    "Config",
    "DataError",
    "Difference",
    "EvaluationContext",
    "Evaluator",
    "Example",
    "Features",
    "Judgement",
    "Labels",
    "Listener",
    "LoadRequest",
    "LoadedModel",
    "Metric",
    "ModelLoader",
    "Prediction",
    "RandomSource",
    "Regularizer",
    "SilentListener",
    "Strategy",
    "Task",
    "iterate",
]
