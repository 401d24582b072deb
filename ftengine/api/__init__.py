"""The contracts: what a plugin implements, one file per kind, and the small objects that plugins and engine exchange.

Nothing here imports torch at run time, so that `--help`, `plugins list` and recipe errors stay fast.
"""

from ftengine.api.audit import Audit, AuditedData, AuditedRows
from ftengine.api.augmenter import Augmenter, AugmenterConfig, InputAugmenter, RandomSource, TextAugmenter
from ftengine.api.callback import BeforeStep, Callback, Event, Failed, Finished, Saved, Started, Stepped, Validated
from ftengine.api.component import Component, Config, Traits, overrides, usual
from ftengine.api.conversation import Conversation, Message, ToolCall
from ftengine.api.display import Display, Finding, Level, Line, LineChart, Matrix, Table
from ftengine.api.evaluator import Evaluator, EvaluatorTraits
from ftengine.api.evaluator_sorts import CodeEvaluator, FittedEvaluator, IntervalEvaluator, ModelEvaluator
from ftengine.api.exporter import Exported, Exporter, ExportSource, Runtime
from ftengine.api.fast_path import Decoder, FastPath, FastPathTraits, InferencePath, TrainingContext
from ftengine.api.files import beside, require_inside
from ftengine.api.listener import Listener, SilentListener, iterate
from ftengine.api.loader import ModelLoader, Provenance
from ftengine.api.metric import Baseline, Difference, Estimate, Estimator, ExampleScores, Metric, Rows, Test
from ftengine.api.on_policy import DrawRequest, Draws, OnPolicyTask
from ftengine.api.optimizer import Optimizer, ShardingTraits
from ftengine.api.reader import BrokenRow, FileReader, Place, Reader, ReaderTraits, Row, place_of
from ftengine.api.regularizer import Regularizer, RegularizerTraits
from ftengine.api.rule import Rule
from ftengine.api.schedule import Schedule
from ftengine.api.strategy import Strategy, StrategyTraits
from ftengine.api.task import Recognised, Task, TaskTraits
from ftengine.api.task_sorts import GenerativeTask, InBatchTask, ReferenceTask
from ftengine.api.types import (
    SAMPLES,
    Batch,
    Example,
    Features,
    Labels,
    LoadedModel,
    LoadRequest,
    Prediction,
    Prompt,
    View,
)
from ftengine.errors import DataError

VERSION = "1"
"""Version of the contract; it rises when a plugin may have to change."""

__all__ = [
    "SAMPLES",
    "VERSION",
    "Audit",
    "AuditedData",
    "AuditedRows",
    "Augmenter",
    "AugmenterConfig",
    "Baseline",
    "Batch",
    "BeforeStep",
    "BrokenRow",
    "Callback",
    "CodeEvaluator",
    "Component",
    "Config",
    "Conversation",
    "DataError",
    "Decoder",
    "Difference",
    "Display",
    "DrawRequest",
    "Draws",
    "Estimate",
    "Estimator",
    "Evaluator",
    "EvaluatorTraits",
    "Event",
    "Example",
    "ExampleScores",
    "ExportSource",
    "Exported",
    "Exporter",
    "Failed",
    "FastPath",
    "FastPathTraits",
    "Features",
    "FileReader",
    "Finding",
    "Finished",
    "FittedEvaluator",
    "GenerativeTask",
    "InBatchTask",
    "InferencePath",
    "InputAugmenter",
    "IntervalEvaluator",
    "Labels",
    "Level",
    "Line",
    "LineChart",
    "Listener",
    "LoadRequest",
    "LoadedModel",
    "Matrix",
    "Message",
    "Metric",
    "ModelEvaluator",
    "ModelLoader",
    "OnPolicyTask",
    "Optimizer",
    "Place",
    "Prediction",
    "Prompt",
    "Provenance",
    "RandomSource",
    "Reader",
    "ReaderTraits",
    "Recognised",
    "ReferenceTask",
    "Regularizer",
    "RegularizerTraits",
    "Row",
    "Rows",
    "Rule",
    "Runtime",
    "Saved",
    "Schedule",
    "ShardingTraits",
    "SilentListener",
    "Started",
    "Stepped",
    "Strategy",
    "StrategyTraits",
    "Table",
    "Task",
    "TaskTraits",
    "Test",
    "TextAugmenter",
    "ToolCall",
    "TrainingContext",
    "Traits",
    "Validated",
    "View",
    "beside",
    "iterate",
    "overrides",
    "place_of",
    "require_inside",
    "usual",
]
