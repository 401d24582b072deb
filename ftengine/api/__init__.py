"""The contracts: what a plugin implements, a file a kind, and the small objects that cross between rooms.

Nothing here imports torch at run time, so that `--help`, `plugins list` and recipe errors stay fast.
"""

from ftengine.api.abilities import (
    AsksForAnswers,
    AveragesWeights,
    BuildsSkeletons,
    ChangesAtTheEnd,
    ChecksColumns,
    ChecksOptions,
    ChecksSource,
    ChoosesCriterion,
    Cites,
    FitsOnValidation,
    FreezesByStep,
    Generates,
    HoldsState,
    Infers,
    KnowsTrials,
    LearnsLabels,
    Merges,
    MixesBatches,
    PredictsDistributions,
    Probes,
    ReadsColumns,
    ReadsFiles,
    ReadsProcessor,
    Reopens,
    ReplacesWeightDecay,
    ReportsEnvironment,
    ScoresExamples,
    ScoresResamples,
    SeesSteps,
    Shows,
    ShowsDetails,
    Starts,
    WeighsExamples,
)
from ftengine.api.audit import Audit, AuditedData, AuditedRows
from ftengine.api.augmenter import Augmenter, AugmenterConfig, InputAugmenter, RandomSource, TextAugmenter
from ftengine.api.callback import Callback, Event, Failed, Finished, Saved, Started, Stepped, Validated
from ftengine.api.component import Component, Config
from ftengine.api.criterion import Criterion
from ftengine.api.display import Display, Finding, Line, LineChart, Matrix, Table
from ftengine.api.evaluator import Difference, EvaluationContext, Evaluator, Judgement, Metric
from ftengine.api.listener import Listener, SilentListener, iterate
from ftengine.api.loader import ModelLoader
from ftengine.api.personal import PERSONAL, find_personal, redact, redact_json, redact_pieces
from ftengine.api.regularizer import Regularizer
from ftengine.api.rule import Rule
from ftengine.api.strategy import Strategy
from ftengine.api.task import Task
from ftengine.api.types import Batch, Example, Features, Labels, LoadedModel, LoadRequest, Prediction, View
from ftengine.errors import DataError

VERSION = "1"
"""Version of the contract; it rises when a plugin may have to change."""

__all__ = [
    "PERSONAL",
    "VERSION",
    "AsksForAnswers",
    "Audit",
    "AuditedData",
    "AuditedRows",
    "Augmenter",
    "AugmenterConfig",
    "AveragesWeights",
    "Batch",
    "BuildsSkeletons",
    "Callback",
    "ChangesAtTheEnd",
    "ChecksColumns",
    "ChecksOptions",
    "ChecksSource",
    "ChoosesCriterion",
    "Cites",
    "Component",
    "Config",
    "Criterion",
    "DataError",
    "Difference",
    "Display",
    "EvaluationContext",
    "Evaluator",
    "Event",
    "Example",
    "Failed",
    "Features",
    "Finding",
    "Finished",
    "FitsOnValidation",
    "FreezesByStep",
    "Generates",
    "HoldsState",
    "Infers",
    "InputAugmenter",
    "Judgement",
    "KnowsTrials",
    "Labels",
    "LearnsLabels",
    "Line",
    "LineChart",
    "Listener",
    "LoadRequest",
    "LoadedModel",
    "Matrix",
    "Merges",
    "Metric",
    "MixesBatches",
    "ModelLoader",
    "Prediction",
    "PredictsDistributions",
    "Probes",
    "RandomSource",
    "ReadsColumns",
    "ReadsFiles",
    "ReadsProcessor",
    "Regularizer",
    "Reopens",
    "ReplacesWeightDecay",
    "ReportsEnvironment",
    "Rule",
    "Saved",
    "ScoresExamples",
    "ScoresResamples",
    "SeesSteps",
    "Shows",
    "ShowsDetails",
    "SilentListener",
    "Started",
    "Starts",
    "Stepped",
    "Strategy",
    "Table",
    "Task",
    "TextAugmenter",
    "Validated",
    "View",
    "WeighsExamples",
    "find_personal",
    "iterate",
    "redact",
    "redact_json",
    "redact_pieces",
]
