"""Evaluators that ship with ftengine."""

from ftengine_builtins.evaluators.calibration import Calibration
from ftengine_builtins.evaluators.classification import Classification
from ftengine_builtins.evaluators.drift import AnswerLength, Divergence
from ftengine_builtins.evaluators.entities import Entities
from ftengine_builtins.evaluators.generation import Generation
from ftengine_builtins.evaluators.language import Perplexity
from ftengine_builtins.evaluators.mean_reward import MeanReward
from ftengine_builtins.evaluators.memorisation import Memorisation
from ftengine_builtins.evaluators.preferences import Preferences, Rewards
from ftengine_builtins.evaluators.ranking import Reranking, Retrieval, Triplets
from ftengine_builtins.evaluators.refusal import Refusal
from ftengine_builtins.evaluators.regression import Regression
from ftengine_builtins.evaluators.similarity import Similarity
from ftengine_builtins.evaluators.teacher_divergence import TeacherDivergence
from ftengine_builtins.evaluators.tool_use import ToolUse
from ftengine_builtins.evaluators.unpaired import UnpairedPreferences
from ftengine_builtins.evaluators.verifier import Verifier

__all__ = [
    "AnswerLength",
    "Calibration",
    "Classification",
    "Divergence",
    "Entities",
    "Generation",
    "MeanReward",
    "Memorisation",
    "Perplexity",
    "Preferences",
    "Refusal",
    "Regression",
    "Reranking",
    "Retrieval",
    "Rewards",
    "Similarity",
    "TeacherDivergence",
    "ToolUse",
    "Triplets",
    "UnpairedPreferences",
    "Verifier",
]
