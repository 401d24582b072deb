"""Heads: the transformers class of each, the order of its outputs for the labels, and its newly initialised modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import transformers.models
from torch import nn

from ftengine.api import Labels
from ftengine.errors import SourceError, did_you_mean

Shape = tuple[int, ...]

HEADS = {
    "audio-classification": "AutoModelForAudioClassification",
    "causal-lm": "AutoModelForCausalLM",
    "ctc": "AutoModelForCTC",
    "feature-extraction": "AutoModel",
    "image-classification": "AutoModelForImageClassification",
    "image-text-to-text": "AutoModelForImageTextToText",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "speech-seq2seq": "AutoModelForSpeechSeq2Seq",
    "token-classification": "AutoModelForTokenClassification",
}
"""The transformers class behind each head."""

GENERATIVE = frozenset({"causal-lm", "image-text-to-text", "seq2seq-lm", "speech-seq2seq"})
"""Heads over the vocabulary, which must come from the checkpoint: small data cannot train new ones."""

AUDIO = ("audio-classification", "ctc", "speech-seq2seq")
"""Heads of models that read audio."""

HEADLESS = "feature-extraction"
"""No head: the task reads the hidden states of the base."""

PROBLEM_TYPES = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
    "tags": "single_label_classification",
}
"""transformers' problem type for each kind of `Labels`."""


def auto_class(head: str, config: Any, source: str, *, trust_remote_code: bool = False) -> Any:
    """Return the auto class of a head (SourceError: unknown head, or one that the architecture lacks)."""
    if head not in HEADS:
        raise SourceError(f"unknown head {head!r}. Heads are: {', '.join(HEADS)}." + did_you_mean(head, HEADS))
    auto = getattr(transformers, HEADS[head])
    remote = trust_remote_code and HEADS[head] in (getattr(config, "auto_map", None) or {})
    if type(config) not in auto._model_mapping and not remote:
        fitting = [name for name, cls in HEADS.items() if type(config) in getattr(transformers, cls)._model_mapping]
        raise SourceError(
            f"{source!r} is a {config.model_type} model, for which transformers has no {head} head. "
            f"It has: {', '.join(fitting) or 'none that ftengine uses'}."
        )
    if head == HEADLESS and config.is_encoder_decoder:
        raise SourceError(
            f"{source!r} is a {config.model_type} model, an encoder-decoder, for which no "
            "way to pool a text's vector is defined. Use an encoder (MiniLM, BERT, …) or a decoder (Llama, Qwen, …)."
        )
    masked = type(config) in transformers.AutoModelForMaskedLM._model_mapping and not config.is_encoder_decoder
    if head == "causal-lm" and masked and getattr(config, "is_decoder", None) is False:
        raise SourceError(
            f"{source!r} is a {config.model_type} encoder: each token sees the next one, so it cannot learn to "
            "predict it. Use a decoder (GPT-2, Llama, …) or a classification task."
        )
    return auto


def reads_audio(config: Any) -> bool:
    """Return whether a model's input is audio."""
    return any(type(config) in getattr(transformers, HEADS[head])._model_mapping for head in AUDIO)


def reads_pictures(config: Any) -> bool:
    """Return whether a model answers texts with pictures, and is no language model of text alone."""
    models, texts = transformers.AutoModelForImageTextToText, transformers.AutoModelForCausalLM
    return type(config) in models._model_mapping and type(config) not in texts._model_mapping


def is_decoder(config: Any) -> bool:
    """Return whether each token of a model attends only to the tokens before it."""
    kind, masked = type(config), transformers.AutoModelForMaskedLM._model_mapping
    causal = kind in transformers.AutoModelForCausalLM._model_mapping
    return causal and (kind not in masked or bool(getattr(config, "is_decoder", False)))


def rows_of(names: Sequence[str], labels: Labels) -> list[int] | None:
    """Return the checkpoint's output index for each label; None if it has other labels."""
    return [names.index(name) for name in labels.names] if sorted(names) == sorted(labels.names) else None


def checkpoint_rows(config: Any, labels: Labels) -> list[int] | None:
    """Return the checkpoint's output index for each label, from its unchanged `config`.

    None if the checkpoint's head was trained for other labels or another problem type.
    """
    problem = PROBLEM_TYPES[labels.kind]
    if (config.problem_type or problem) != problem:
        return None
    names = [str(name) for _, name in sorted(config.id2label.items())]
    rows = rows_of(names, labels)
    if rows is None and config.problem_type == "regression" and names == [f"LABEL_{i}" for i in range(len(labels.ids))]:
        return list(range(len(names)))
    return rows


def output_layer(module: Any, size: int) -> tuple[str, nn.Linear] | None:
    """Return the layer of the logits: the last linear layer outside the base with `size` outputs."""
    prefix = f"{module.base_model_prefix}."
    layers = [(name, x) for name, x in module.named_modules() if isinstance(x, nn.Linear) and x.out_features == size]
    return next((named for named in reversed(layers) if not named[0].startswith(prefix)), None)


def fresh_modules(module: Any, keys: Iterable[str], source: str, *, head_may_be_new: bool) -> tuple[str, ...]:
    """Return the fewest modules that cover `keys`, parameters that the checkpoint lacks and that are newly initialised.

    A head may be new if the task trains it (`head_may_be_new`), and so may a pooler, which belongs to the head although
    it is in the base. Any other missing weight would stay random (SourceError).
    """
    keys = set(keys)
    allowed = {key for key in keys if head_may_be_new and "." in key and not _in_base(module, key)}
    if lacking := sorted(keys - allowed):
        some = ", ".join(lacking[:3]) + (", …" if len(lacking) > 3 else "")
        raise SourceError(
            f"{source!r} lacks {len(lacking)} of the weights that {type(module).__name__} needs ({some}), or has "
            "them in another shape. Its config.json and weights do not match, or it was saved for another task."
        )
    return tuple(sorted({_outermost(module, key, keys) for key in keys}))


def predicted_fresh(module: Any, saved_config: Any, stored: Mapping[str, Shape | None] | None = None) -> set[str]:
    """Return the parameters of a model on the meta device that a checkpoint lacks, without reading its weights.

    Args:
        saved_config: the checkpoint's config, without the task's labels.
        stored: the shapes of the checkpoint's tensors by name; None for an unknown shape. By default they are those of
            the class in the config's `architectures`.
    """
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    prefix = f"{module.base_model_prefix}."
    saved = _saved_shapes(saved_config)
    if stored is not None:
        bare = {key.removeprefix(prefix): shape for key, shape in stored.items()}
        saved = {key: saved.get(key) if shape is None else shape for key, shape in bare.items()}
    lacking = {key for key, shape in expected.items() if saved.get(key.removeprefix(prefix)) != shape}
    return {key for key in lacking if not _in_base(module, key)}


def _saved_shapes(config: Any) -> dict[str, Shape | None]:
    """Return parameter shapes, without base prefix, of the class that saved a checkpoint; {} if unknown."""
    cls = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        return {}
    with torch.device("meta"):
        model = cls(config)
    prefix = f"{cls.base_model_prefix}."
    return {key.removeprefix(prefix): tuple(value.shape) for key, value in model.state_dict().items()}


def _in_base(module: Any, key: str) -> bool:
    bases = transformers.AutoModel._model_mapping.get(type(module.config), ())
    headless = type(module) in (bases if isinstance(bases, tuple) else (bases,))
    return (headless or key.startswith(f"{module.base_model_prefix}.")) and "pooler" not in key.split(".")


def _outermost(module: Any, key: str, fresh: set[str]) -> str:
    """Return the outermost module around a parameter, below the model, that has only new parameters."""
    name = key.rpartition(".")[0]
    while "." in name:
        parent = name.rpartition(".")[0]
        inside = {k for k in module.state_dict(keep_vars=True) if k.startswith(f"{parent}.")}
        if not inside <= fresh:
            break
        name = parent
    return name
