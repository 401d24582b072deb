"""Tasks that ship with ftengine."""

from ftengine_builtins.tasks.causal_lm import CausalLM
from ftengine_builtins.tasks.distillation import Distillation
from ftengine_builtins.tasks.distillation import DistillationConfig as DistillationConfig
from ftengine_builtins.tasks.embedding import Embedding
from ftengine_builtins.tasks.grpo import GRPO
from ftengine_builtins.tasks.grpo import GRPOConfig as GRPOConfig
from ftengine_builtins.tasks.image_classification import ImageClassification
from ftengine_builtins.tasks.labelled import LabelledTask
from ftengine_builtins.tasks.policy_losses import DrawnTokens as DrawnTokens
from ftengine_builtins.tasks.policy_losses import PolicyLoss as PolicyLoss
from ftengine_builtins.tasks.preference import Preference
from ftengine_builtins.tasks.preference import PreferenceConfig as PreferenceConfig
from ftengine_builtins.tasks.preference_losses import Pairs as Pairs
from ftengine_builtins.tasks.preference_losses import PreferenceLoss as PreferenceLoss
from ftengine_builtins.tasks.reranking import Reranking
from ftengine_builtins.tasks.reward import Reward
from ftengine_builtins.tasks.seq2seq_lm import Seq2SeqLM
from ftengine_builtins.tasks.text_classification import TextClassification
from ftengine_builtins.tasks.token_classification import TokenClassification
from ftengine_builtins.tasks.unpaired_losses import Answers as Answers
from ftengine_builtins.tasks.unpaired_losses import UnpairedLoss as UnpairedLoss
from ftengine_builtins.tasks.unpaired_preference import UnpairedPreference

__all__ = [
    "GRPO",
    "CausalLM",
    "Distillation",
    "Embedding",
    "ImageClassification",
    "LabelledTask",
    "Preference",
    "Reranking",
    "Reward",
    "Seq2SeqLM",
    "TextClassification",
    "TokenClassification",
    "UnpairedPreference",
]
