"""Loading a `LoadedModel` from a folder or GGUF file that transformers reads."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ftengine.api import LoadedModel, LoadRequest
from ftengine.errors import SourceError, json_of_file, shown
from ftengine_builtins.loaders.heads import (
    GENERATIVE,
    HEADLESS,
    PROBLEM_TYPES,
    Shape,
    auto_class,
    checkpoint_rows,
    fresh_modules,
    output_layer,
    predicted_fresh,
)
from ftengine_builtins.loaders.quiet import reading
from ftengine_builtins.strategies.adapter_config import CONFIG_FILE, OWN_CONFIG_FILE
from ftengine_builtins.strategies.routing import ASKED

MOST_LAYERS, COUNTS_LAYERS = 10_000, re.compile("layer|block|depth|expert")
"""Most layers and experts, and words in the keys of their numbers."""
DROPS = re.compile("drop(out)?(_p|_prob|_probability|_rate)?$")
"""Keys of probabilities: attention_dropout, hidden_dropout_prob, attn_pdrop, layerdrop."""
MOST_PACKED, ROOM = 16, 10**7
"""Most parameters in one stored number (twice eight of 4 bits in an integer), and of a new head."""
UNLIMITED = 10**9
"""Tokenizers without a limit state a larger one than this."""


def load_pretrained(
    request: LoadRequest, folder: Path, config: Any, processor: Any, *, trust_remote_code: bool = False, **options: Any
) -> LoadedModel:
    """Load the model that `request` asks for, with the checkpoint's `config`, which is not modified.

    The weights are in `folder` (SourceError: the head is unknown, or weights are missing).
    """
    auto = auto_class(request.head, config, request.source, trust_remote_code=trust_remote_code)
    with reading(request.source):
        module, info = auto.from_pretrained(
            folder,
            config=_with_labels(config, request),
            dtype=request.dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # a head of another size is initialised; anything else is refused below
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            **options,
        )
    fresh = set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
    return _loaded(request, module, config, processor, fresh)


def build_skeleton(
    request: LoadRequest,
    config: Any,
    processor: Any,
    *,
    stored: Mapping[str, Shape | None] | None = None,
    held: int | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Build the model that `load_pretrained` would load, on the meta device.

    `stored` has the shapes of the weights, if known (`predicted_fresh`), and `held` is the number of stored values
    (SourceError: the config describes a far larger model).
    """
    auto = auto_class(request.head, config, request.source, trust_remote_code=trust_remote_code)
    dtype = config.dtype or torch.float32 if request.dtype == "auto" else request.dtype
    with reading(request.source), torch.device("meta"):
        module = auto.from_config(_with_labels(config, request), dtype=dtype, trust_remote_code=trust_remote_code)
        fresh = set() if request.head in GENERATIVE else predicted_fresh(module, config, stored)
    if held is None and stored and None not in stored.values():
        held = sum(math.prod(shape) for shape in stored.values() if shape is not None)
    size = sum(parameter.numel() for parameter in module.parameters())
    if held and size > MOST_PACKED * held + ROOM:
        raise SourceError(
            f"the configuration of {request.source!r} describes a model of {size:,} parameters, but its weights hold "
            f"{held:,} numbers. They do not match; download both again."
        )
    return _loaded(request, module, config, processor, fresh)


def _with_labels(config: Any, request: LoadRequest) -> Any:
    config, labels = copy.deepcopy(config), request.labels
    if labels is not None:
        config.id2label, config.label2id = dict(enumerate(labels.names)), dict(labels.ids)
        config.problem_type = PROBLEM_TYPES[labels.kind]
    return config


def _loaded(request: LoadRequest, module: Any, config: Any, processor: Any, fresh: set[str]) -> LoadedModel:
    """Adapt head, special tokens and limits to the task; `config` is the checkpoint's, `fresh` has keys it lacks."""
    if request.labels is not None:
        fresh |= _fit_output_layer(module, fresh, config, request)
    new = fresh_modules(module, fresh, request.source, head_may_be_new=request.head not in GENERATIVE)
    if request.head == HEADLESS:
        new = _without_unread(module, new)
        if encoder := sentence_encoder(Path(config._name_or_path), request.source):
            module.config.sentence_encoder = encoder  # its own files are not saved with the model
    _agree_on_special_tokens(module, processor)
    text = module.config.get_text_config()
    if getattr(text, "output_router_logits", False):  # with which transformers does not generate
        text.output_router_logits = False
        setattr(module, ASKED, True)
    limit = longest_input(module, processor)
    return LoadedModel(module, processor, request.source, request.head, new, request.labels, max_length=limit)


def _without_unread(module: Any, new: tuple[str, ...]) -> tuple[str, ...]:
    """Set a new pooler, the only module that may be new here, to zeros and return no module: nothing reads it.

    It stays in the model, as readers of the saved model expect it.
    """
    for name in new:
        for parameter in module.get_submodule(name).parameters():
            nn.init.zeros_(parameter)
    return ()


def sentence_encoder(folder: Path, source: str) -> dict[str, Any]:
    """Return a sentence-transformers folder's "pooling", "prompts" and "max_length"; {} for another folder.

    Pooling is "mean", "cls" or "last". Prompts are those of "query" and "document", and the "default" one.

    Raises:
        SourceError: it has another pooling, or a module other than pooling and normalisation.
    """
    file = folder / "modules.json"
    if file.is_file():
        modules = _json(file, source)
        kinds = (
            [str(module.get("type")).rpartition(".")[2] for module in modules]
            if _mappings(modules)
            else [shown(modules)]
        )
        if other := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
            raise SourceError(
                f"{source!r} has a module {other[0]} (modules.json), but ftengine supports only pooling and "
                "normalisation. Choose another base, or, to do without it, a copy of the folder without modules.json."
            )
    encoder: dict[str, Any] = {}
    pooling: Mapping[str, Any] = {}
    if (file := folder / "1_Pooling" / "config.json").is_file():
        pooling = read_json(file, source)
        encoder["pooling"] = _pooling(pooling, source)
    if (file := folder / "config_sentence_transformers.json").is_file():
        settings = read_json(file, source)
        prompts = settings.get("prompts") if isinstance(settings.get("prompts"), Mapping) else {}
        usual = prompts.get(settings.get("default_prompt_name"), "")
        document = next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), usual)
        if pooling.get("include_prompt") is False and any(prompts.values()):
            raise SourceError(
                f"{source!r} leaves prompts out of the mean of tokens (include_prompt in 1_Pooling/config.json), which "
                "ftengine does not support. Choose another base."
            )
        encoder["prompts"] = {"query": prompts.get("query", usual), "document": document, "default": usual}
    if (file := folder / "sentence_bert_config.json").is_file():
        longest = read_json(file, source).get("max_seq_length")
        encoder |= {"max_length": longest} if isinstance(longest, int) and 0 < longest < UNLIMITED else {}
    return encoder


def _pooling(settings: Mapping[str, Any], source: str) -> str:
    old = [name for name, on in settings.items() if name.startswith("pooling_mode_") and on is True]
    mode = settings.get("pooling_mode", old[0].removeprefix("pooling_mode_") if len(old) == 1 else old)
    modes = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls", "lasttoken": "last"}
    if not isinstance(mode, str) or mode not in modes:
        raise SourceError(
            f"{source!r} has pooling {shown(mode)} (1_Pooling/config.json); ftengine supports mean, cls and last "
            "token. Choose another base."
        )
    return modes[mode]


def _mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)


def _fit_output_layer(module: Any, fresh: set[str], saved_config: Any, request: LoadRequest) -> set[str]:
    """Reorder or reset the checkpoint's head for the task's labels; return its newly initialised parameters."""
    rows = checkpoint_rows(saved_config, request.labels)
    head = output_layer(module, len(request.labels.names))
    if head is None:
        if fresh or rows == sorted(rows or []):
            return set()
        raise SourceError(
            f"cannot tell which layer of {request.source!r} ({type(module).__name__}) computes the logits, so its "
            f"head cannot be adapted to the labels {', '.join(request.labels.names)}."
        )
    name, layer = head
    keys = {f"{name}.{key}" for key, _ in layer.named_parameters()}
    if keys <= fresh:
        return keys
    if rows is None:  # a head of the same size that was trained on other labels
        layer.reset_parameters()
        return keys
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter[rows])
    return set()


def pad_with_eos(tokenizer: Any) -> Any:
    """Use the end token as padding if a tokenizer has none; the attention mask distinguishes them.

    The tokenizer is called once, as some read their files, and fail, only then.
    """
    tokenizer("a")
    if getattr(tokenizer, "pad_token", "") is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _agree_on_special_tokens(module: Any, processor: Any) -> None:
    """Set padding and end token of config and generation config to the tokenizer's.

    This is done after the model is built, as a config with a padding token freezes its embedding row. The config keeps
    its own if positions are counted from the padding token.
    """
    pad, eos = getattr(processor, "pad_token_id", None), getattr(processor, "eos_token_id", None)
    if pad is not None and not _tables_counted_from_padding(module):
        module.config.get_text_config().pad_token_id = pad
    if (generation := getattr(module, "generation_config", None)) is None:
        return
    if pad is not None:
        generation.pad_token_id = pad
    stops = generation.eos_token_id
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    if eos is not None and eos not in stops:
        generation.eos_token_id = [*stops, eos] if stops else eos


def longest_input(module: Any, processor: Any) -> int | None:
    """Return the most tokens that model and tokenizer accept; None if neither has a limit."""
    limits = [getattr(processor, "model_max_length", None)]
    config = getattr(module, "config", None)
    if hasattr(config, "get_text_config"):
        keys = ("max_position_embeddings", "max_target_positions")  # the latter of decoders behind an audio encoder
        limits += [getattr(config.get_text_config(), key, None) for key in keys]
    limits += [table.num_embeddings - table.padding_idx - 1 for table in _tables_counted_from_padding(module)]
    valid = [limit for limit in limits if isinstance(limit, int) and 0 < limit < UNLIMITED]
    return min(valid, default=None)


def _tables_counted_from_padding(module: Any) -> list[nn.Embedding]:
    """Return position tables of RoBERTa and its kin, whose first position is padding_idx + 1."""
    return [
        table
        for name, table in module.named_modules()
        if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None
    ]


def require_possible(config: Mapping[str, Any], source: str) -> None:
    """Refuse more layers or experts than any model has (each is built), and impossible dropout (SourceError)."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            require_possible(value, source)
        elif isinstance(value, (int, float)) and DROPS.search(key) and not 0 <= value <= 1:
            raise SourceError(f"{source!r} has {key} {value:g}; a probability must be from 0 to 1. Correct the file.")
        elif value is None and DROPS.search(key) and key.startswith("att"):  # a classifier's may be null
            raise SourceError(f"{source!r} has {key} null; a probability must be from 0 to 1. Correct the file.")
        elif isinstance(value, int) and value > MOST_LAYERS and COUNTS_LAYERS.search(key):
            raise SourceError(
                f"{source!r} has {key} {value:,}; at most {MOST_LAYERS:,} are allowed. Download it again."
            )


def refuse_adapter(folder: Path, source: str) -> None:
    """Refuse a folder with an adapter, which transformers would apply silently (SourceError names its base)."""
    for file in (folder / CONFIG_FILE, folder / OWN_CONFIG_FILE):
        if file.exists():
            about = read_json(file, source)
            base = about.get("base_model_name_or_path") or about.get("model_name") or "unknown"
            raise SourceError(
                f"{source!r} holds an adapter ({file.name}), trained on {base!r}. "
                "Give the base as model.source, or merge the adapter into it first."
            )


def stored_tensors(file: Path, source: str) -> dict[str, Shape]:
    """Return the shape of each tensor that a safetensors file's header names (SourceError: it cannot be read)."""
    try:
        if file.exists() and not file.is_file():
            raise OSError("it is not a file")
        with safe_open(file, framework="np") as handle:
            return {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise SourceError(f"{source!r}: the weights {str(file)!r} do not exist.") from None
    except (OSError, SafetensorError) as error:
        raise SourceError(
            f"{file.name} of {source!r} is damaged or not in safetensors format: {error}. Download it again. Pickled "
            "weights can run code; convert them first (torch.load with weights_only=True, then safetensors)."
        ) from None


def read_json(file: Path, source: str) -> dict[str, Any]:
    """Read a JSON object (SourceError: the file is not one)."""
    content = _json(file, source)
    if not isinstance(content, dict):
        raise SourceError(f"{file.name} of {source!r} holds a {type(content).__name__}; it must hold a JSON object.")
    return content


def _json(file: Path, source: str) -> Any:
    try:
        return json_of_file(file)
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read {file.name} of {source!r}: {error}.") from None
