"""Models: what trains of them, how weights are saved and loaded, how they read and answer.

Everything here is open to plugins. Names are imported when first used: what reads rows and chats needs no torch.
"""

from typing import TYPE_CHECKING

from ftengine import lazy_attributes

if TYPE_CHECKING:
    from ftengine.model.answers import read_answer
    from ftengine.model.chat import has_template, render
    from ftengine.model.conversation import read_conversation, with_system
    from ftengine.model.criterion import Criterion
    from ftengine.model.generation import (
        GenerationOptions,
        complete,
        generate,
        log_probabilities,
        made_to_fit,
        stop_tokens,
    )
    from ftengine.model.generation_settings import measured_settings
    from ftengine.model.modes import drops, evaluating, has_running_statistics, seeded, widen
    from ftengine.model.norms import RMSNorm, rms_norm_of
    from ftengine.model.parameters import (
        count,
        decayed,
        default_param_groups,
        parameter_sizes,
        state_tensors,
        trainable,
    )
    from ftengine.model.patterns import ModuleNames, find_modules, matches_name, matching, near_modules, regex
    from ftengine.model.probing import probe_tokens, raw_outputs
    from ftengine.model.saving import (
        MODEL_FILE,
        TRAINED_FILE,
        copy_into,
        is_pretrained,
        load_trained,
        open_model,
        quiet_transformers,
        read_tensors,
        save_model,
        save_tensors,
        save_trained,
    )
    from ftengine.model.token_loss import TokenLoss
    from ftengine.model.tokens import IGNORED, Span, encode_spans, length_limit, pad, stack_tokens
    from ftengine.model.turn_ends import end_tokens
    from ftengine.model.turns import encode_conversation

_HOMES = {
    "ftengine.model.answers": "read_answer",
    "ftengine.model.chat": "has_template render",
    "ftengine.model.conversation": "read_conversation with_system",
    "ftengine.model.criterion": "Criterion",
    "ftengine.model.generation_settings": "measured_settings",
    "ftengine.model.generation": "GenerationOptions complete generate log_probabilities made_to_fit stop_tokens",
    "ftengine.model.modes": "drops evaluating has_running_statistics seeded widen",
    "ftengine.model.norms": "RMSNorm rms_norm_of",
    "ftengine.model.parameters": "count decayed default_param_groups parameter_sizes state_tensors trainable",
    "ftengine.model.patterns": "ModuleNames find_modules matches_name matching near_modules regex",
    "ftengine.model.probing": "probe_tokens raw_outputs",
    "ftengine.model.saving": "MODEL_FILE TRAINED_FILE copy_into is_pretrained load_trained open_model "
    "quiet_transformers read_tensors save_model save_tensors save_trained",
    "ftengine.model.token_loss": "TokenLoss",
    "ftengine.model.tokens": "IGNORED Span encode_spans length_limit pad stack_tokens",
    "ftengine.model.turn_ends": "end_tokens",
    "ftengine.model.turns": "encode_conversation",
}

__all__ = [
    "IGNORED",
    "MODEL_FILE",
    "TRAINED_FILE",
    "Criterion",
    "GenerationOptions",
    "ModuleNames",
    "RMSNorm",
    "Span",
    "TokenLoss",
    "complete",
    "copy_into",
    "count",
    "decayed",
    "default_param_groups",
    "drops",
    "encode_conversation",
    "encode_spans",
    "end_tokens",
    "evaluating",
    "find_modules",
    "generate",
    "has_running_statistics",
    "has_template",
    "is_pretrained",
    "length_limit",
    "load_trained",
    "log_probabilities",
    "made_to_fit",
    "matches_name",
    "matching",
    "measured_settings",
    "near_modules",
    "open_model",
    "pad",
    "parameter_sizes",
    "probe_tokens",
    "quiet_transformers",
    "raw_outputs",
    "read_answer",
    "read_conversation",
    "read_tensors",
    "regex",
    "render",
    "rms_norm_of",
    "save_model",
    "save_tensors",
    "save_trained",
    "seeded",
    "stack_tokens",
    "state_tensors",
    "stop_tokens",
    "trainable",
    "widen",
    "with_system",
]

__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
