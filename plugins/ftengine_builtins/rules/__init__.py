"""Rules that judge finished runs, one class for each question."""

from ftengine_builtins.rules.augmentation import AugmentedTraining
from ftengine_builtins.rules.baseline import ConstantAnswer
from ftengine_builtins.rules.calibration import CalibratedConfidence
from ftengine_builtins.rules.classes import UnansweredClasses, UntestedClasses
from ftengine_builtins.rules.columns import TellingPhrase, UnreadColumnsTell
from ftengine_builtins.rules.data import AuditFindings, CutExamples, LeakedRows, RepeatedRows
from ftengine_builtins.rules.distillation import Distillation
from ftengine_builtins.rules.drawn_rewards import DrawnRewards
from ftengine_builtins.rules.effect import UnmovedPredictions, UnusualSettings
from ftengine_builtins.rules.error_groups import ErrorGroups
from ftengine_builtins.rules.expert_loads import ExpertLoads
from ftengine_builtins.rules.fitting import GeneralisationGap, OverFitting
from ftengine_builtins.rules.label_shares import ClassWeights, LabelShares
from ftengine_builtins.rules.labels import FlippedLabels, LabelSpellingsConfused
from ftengine_builtins.rules.learning import LearningCurve
from ftengine_builtins.rules.preferences import ChosenAnswers, LongerAnswers, SeparablePairs, SwappedPairs
from ftengine_builtins.rules.probes import Forgetting, Memorisation, Refusal, Robustness
from ftengine_builtins.rules.quality import BetterThanBase, HeldOutSplit, WorseMetrics
from ftengine_builtins.rules.seed_spread import SeedSpread
from ftengine_builtins.rules.slices import SliceGaps
from ftengine_builtins.rules.split_shift import HeldOutShift
from ftengine_builtins.rules.splits import (
    DisplacedTags,
    NearNegatives,
    OppositeScores,
    SwappedClasses,
    ValidationAndTest,
)
from ftengine_builtins.rules.unscored import UnscoredAnswers

__all__ = [
    "AuditFindings",
    "AugmentedTraining",
    "BetterThanBase",
    "CalibratedConfidence",
    "ChosenAnswers",
    "ClassWeights",
    "ConstantAnswer",
    "CutExamples",
    "DisplacedTags",
    "Distillation",
    "DrawnRewards",
    "ErrorGroups",
    "ExpertLoads",
    "FlippedLabels",
    "Forgetting",
    "GeneralisationGap",
    "HeldOutShift",
    "HeldOutSplit",
    "LabelShares",
    "LabelSpellingsConfused",
    "LeakedRows",
    "LearningCurve",
    "LongerAnswers",
    "Memorisation",
    "NearNegatives",
    "OppositeScores",
    "OverFitting",
    "Refusal",
    "RepeatedRows",
    "Robustness",
    "SeedSpread",
    "SeparablePairs",
    "SliceGaps",
    "SwappedClasses",
    "SwappedPairs",
    "TellingPhrase",
    "UnansweredClasses",
    "UnmovedPredictions",
    "UnreadColumnsTell",
    "UnscoredAnswers",
    "UntestedClasses",
    "UnusualSettings",
    "ValidationAndTest",
    "WorseMetrics",
]
