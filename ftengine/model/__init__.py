"""Models: what trains of them, how weights are saved and loaded, and by what they are recognised."""

from ftengine.model.fingerprints import fingerprint_processor, fingerprint_weights
from ftengine.model.parameters import count, decayed, default_param_groups, state_tensors, trainable
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

__all__ = [
    "MODEL_FILE",
    "TRAINED_FILE",
    "copy_into",
    "count",
    "decayed",
    "default_param_groups",
    "fingerprint_processor",
    "fingerprint_weights",
    "is_pretrained",
    "load_trained",
    "open_model",
    "probe_tokens",
    "quiet_transformers",
    "raw_outputs",
    "read_tensors",
    "save_model",
    "save_tensors",
    "save_trained",
    "state_tensors",
    "trainable",
]
