"""Models: trainable parameters, saving and loading weights, computing losses.

Everything here is open to plugins. Names are imported when first used: code that only needs tokens does not import
torch.
"""

from typing import TYPE_CHECKING

from ftengine import lazy_attributes

if TYPE_CHECKING:
    from ftengine.model.criterion import Criterion
    from ftengine.model.modes import drops, evaluating, has_running_statistics, seeded, widen
    from ftengine.model.norms import GatedBlock, RMSNorm, gated_block_of, rms_norm_of
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
    from ftengine.model.token_loss import Labelled, TokenLoss
    from ftengine.model.tokens import IGNORED, Span, encode_spans, length_limit, pad, stack_tokens

_HOMES = {
    "ftengine.model.criterion": "Criterion",
    "ftengine.model.modes": "drops evaluating has_running_statistics seeded widen",
    "ftengine.model.norms": "GatedBlock RMSNorm gated_block_of rms_norm_of",
    "ftengine.model.parameters": "count decayed default_param_groups parameter_sizes state_tensors trainable",
    "ftengine.model.patterns": "ModuleNames find_modules matches_name matching near_modules regex",
    "ftengine.model.probing": "probe_tokens raw_outputs",
    "ftengine.model.saving": "MODEL_FILE TRAINED_FILE copy_into is_pretrained load_trained open_model "
    "quiet_transformers read_tensors save_model save_tensors save_trained",
    "ftengine.model.token_loss": "Labelled TokenLoss",
    "ftengine.model.tokens": "IGNORED Span encode_spans length_limit pad stack_tokens",
}
__all__, __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
