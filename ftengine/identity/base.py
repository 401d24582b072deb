"""Whether a base model and its processor are those that something was trained on, and what changed."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import Tensor, nn

from ftengine.errors import BaseMismatch, shown
from ftengine.identity.code import fingerprint_code_of

if TYPE_CHECKING:
    from ftengine.api import LoadedModel

SECTIONS = {
    "weights": "the weights",
    "buffers": "the statistics and biases that are no parameters",
    "processor": "the tokenizer (vocabulary or chat template)",
    "tokens": "the way in which the tokenizer divides a text",
    "config": "the configuration",
    "generation": "the generation settings",
    "code": "the code",
}
"""What a fingerprint has: hashes, then settings by name, which can be named one by one."""

VERSION = "version"
"""In a section of settings, of the library whose settings they are."""

DESCRIBES = frozenset(
    (
        *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "architectures", "auto_map"),
        *("id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params"),  # a head's, see below
        *("dtype", "torch_dtype", "quantization_config", "transformers_weights", "transformers.js_config"),
        *("tokenizer_class", "return_dict", "output_attentions", "output_hidden_states", "use_cache", "torchscript"),
        *("gradient_checkpointing", "initializer_range", "initializer_factor", "init_std"),  # of fresh weights alone
    )
)
"""Keys of a configuration that change nothing of what loaded weights compute, at any depth.

Names of labels are among them: where they say which rows of a head answer what, the loader has put those in the labels'
order, and the weights tell.
"""

ASKED = frozenset(
    (
        *("_from_model_config", "max_length", "max_new_tokens", "do_sample", "temperature", "top_p", "top_k"),
        *("pad_token_id", "output_scores", "output_logits", "return_dict_in_generate"),
    )
)
"""Generation settings that each call of `generate` gives itself, or that change nothing of the answers."""

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Where an object lies in memory, which another process has elsewhere."""

PROBE = (
    "The quick Brown FOX jumps over 12,345.67 lazy dogs; isn't that  two  spaces\tand a tab?\n\nNaïve Ångström e\u0301 "
    "Straße \ufb01ne \uff21\uff22\uff23 北京大学 東京タワー Привет, мир! नमस्ते 🙂 a\u200bb http://example.org/a_b?c=d#e "
    "def f(x):\n    return x**2  # CamelCase <b>bold</b> [MASK] <mask> </s> <|endoftext|> ¿Qué? «oui» … “quoted”"
)
"""A text that shows case folding, Unicode forms, spaces, digits, scripts, and words that may be special tokens."""

PROBE_WORDS = 64
"""Words of the vocabulary, at most, that stand behind it."""


def fingerprint_base(loaded: LoadedModel) -> dict[str, Any]:
    """Return everything that a base's results depend on: hashes of weights, buffers and code, and its settings.

    Args:
        loaded: the model before a strategy changed it. Newly initialised modules differ from run to run and are left
            out; the loader's entries of `fingerprint["config"]` and `["code"]` are kept.
    """
    module, exclude = loaded.module, tuple(loaded.new_modules)
    return {
        **loaded.fingerprint,
        "weights": fingerprint_weights(module, exclude),
        "buffers": _fingerprint_buffers(module, exclude),
        "config": _configuration(module, exclude) | loaded.fingerprint.get("config", {}),
        "generation": _generation(module),
        "code": fingerprint_code_of(module) | loaded.fingerprint.get("code", {}),
    }


@torch.no_grad()
def fingerprint_weights(module: nn.Module, exclude: Iterable[str] = ()) -> str:
    """Return a hash that identifies base weights, whatever dtype they were loaded in.

    The hash covers names, shapes and every element, rounded to bfloat16. It is XXH3 at 2 GB a second (SHA-256: 0.4): it
    detects another base, not a forged one.

    Args:
        module: the model before a strategy touched it.
        exclude: names of newly initialised modules, which differ from run to run.
    """
    return _hash(dict(module.named_parameters()), exclude)


def _fingerprint_buffers(module: nn.Module, exclude: Iterable[str]) -> str:
    """Return a hash of the stored floating-point buffers: averages of batch norms, biases of logits.

    Buffers that are not stored follow from configuration and code; integers are positions and counts of batches.
    """
    stored = module.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in stored}
    return _hash({name: buffer for name, buffer in buffers.items() if buffer.is_floating_point()}, exclude)


def _hash(tensors: Mapping[str, Tensor], exclude: Iterable[str]) -> str:
    digest = xxhash.xxh3_128()
    skipped = tuple(f"{name}." for name in exclude)
    for name, tensor in sorted(tensors.items()):
        if name.startswith(skipped):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        values = tensor.detach().reshape(-1)
        if values.is_floating_point():
            values = values.to(torch.bfloat16).view(torch.int16)
        digest.update(values.cpu().numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def tensor_hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a hash of each tensor's bits, dtype and shape, by name; for a sharded tensor of this process's part.

    XXH3 reads 4 GB a second: it detects accidental changes, not forged ones.
    """
    from torch.distributed.tensor import DTensor  # a second of importing, which lists of plugins do without

    hashes = {}
    for name, tensor in tensors.items():
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        data = own.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        hashes[name] = f"{own.dtype}{tuple(own.shape)}{xxhash.xxh3_128_hexdigest(data)}"
    return hashes


def fingerprint_processor(processor: Any) -> str:
    """Return a hash of a tokenizer's vocabulary and chat template, or of a processor's settings and its tokenizer."""
    digest = hashlib.sha256()
    if not hasattr(processor, "get_vocab") and hasattr(processor, "tokenizer"):
        digest.update(fingerprint_processor(processor.tokenizer).encode())
    if hasattr(processor, "get_vocab"):
        for token, index in sorted(processor.get_vocab().items()):
            digest.update(f"{token}\0{index}\0".encode("utf-8", "surrogatepass"))
        digest.update(str(getattr(processor, "chat_template", None)).encode())
    elif hasattr(processor, "to_dict"):
        digest.update(repr(sorted(processor.to_dict().items(), key=lambda item: item[0])).encode())
    return digest.hexdigest()[:32]


def fingerprint_tokens(processor: Any) -> str:
    """Return a hash of the tokens that a tokenizer makes of a test text (case, Unicode form, special tokens); else "".

    The text has words of its vocabulary, in both cases, as a small vocabulary may lack all others. A tokenizer without
    an unknown token gets these words alone.
    """
    from transformers import PreTrainedTokenizerBase

    if not hasattr(processor, "get_vocab"):
        return ""
    words = sorted(token for token in processor.get_vocab() if token.isalpha() and token.isascii())
    some = words[:: len(words) // PROBE_WORDS + 1]
    quiet = {"verbose": False} if isinstance(processor, PreTrainedTokenizerBase) else {}  # the text may be too long
    for text in (" ".join([PROBE, *some, *map(str.upper, some)]), " ".join(some)):
        try:
            tokens = list(processor(text, **quiet)["input_ids"])
        except Exception:  # tokenizers raises no narrower class
            continue
        return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:32]
    return ""


def _configuration(module: nn.Module, exclude: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings of a configuration that affect results; without one, those of each layer.

    The padding token is the tokenizer's and masked, unless positions are counted from it (RoBERTa).
    """
    config: Any = getattr(module, "config", None)
    if hasattr(config, "to_dict"):
        content = config.to_dict()
        counted = any("position" in name and hasattr(x, "padding_idx") for name, x in module.named_modules())
        padding = frozenset[str]() if counted else frozenset({"pad_token_id"})
        return {VERSION: content.get("transformers_version"), **_settings(content, DESCRIBES | padding)}
    fresh = tuple(f"{name}." for name in exclude)
    layers = {name: layer for name, layer in module.named_modules() if name not in exclude}
    described = {
        name: f"{type(x).__name__}({x.extra_repr()})" for name, x in layers.items() if not name.startswith(fresh)
    }
    return {VERSION: torch.__version__, **{name: ADDRESS.sub("", text) for name, text in described.items()}}


def _generation(module: nn.Module) -> dict[str, Any]:
    """Return the generation settings of a model; {} if it has none."""
    config: Any = getattr(module, "generation_config", None)
    if not hasattr(config, "to_dict"):
        return {}
    content = config.to_dict()
    return {VERSION: content.get("transformers_version"), **_settings(content, DESCRIBES | ASKED)}


def _settings(content: Mapping[str, Any], leave_out: frozenset[str], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested settings by dotted key, as JSON; null counts as missing."""
    leaves: dict[str, Any] = {}
    for key, value in content.items():
        if key in leave_out or value is None:
            continue
        if isinstance(value, Mapping):
            leaves |= _settings(value, leave_out, f"{prefix}{key}.")
        else:
            finite = not isinstance(value, float) or math.isfinite(value)
            leaves[f"{prefix}{key}"] = json.loads(json.dumps(value, default=str)) if finite else str(value)
    return leaves


def changes(then: Mapping[str, Any], now: Mapping[str, Any], leave_out: Iterable[str] = ()) -> list[str]:
    """Describe the differences between two fingerprints; [] if they are of the same base.

    A missing section is ignored: an older version wrote it, or no weights were read. Settings from two versions of a
    library are compared if both versions have the key.
    """
    changed = []
    for section, name in SECTIONS.items():
        was, is_now = then.get(section), now.get(section)
        if was is None or is_now is None or section in leave_out:
            continue
        if not isinstance(was, Mapping):
            changed += [name] if was != is_now else []
        elif differing := _differing(was, is_now):
            more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
            changed.append(f"{name} ({'; '.join(differing[:5])}{more})")
    return changed


def _differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    every = was.get(VERSION) == now.get(VERSION)
    keys = [key for key in {**was, **now} if key != VERSION and (every or (key in was and key in now))]
    pairs = {key: (was.get(key), now.get(key)) for key in keys}
    return [f"{key} was {_setting(a)} and is {_setting(b)}" for key, (a, b) in pairs.items() if not _equal(a, b)]


def _setting(value: Any) -> str:
    return "not there" if value is None else shown(value)


def _equal(a: Any, b: Any) -> bool:
    """Return whether two values are equal, up to storing in float32."""
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (a, b))
    return math.isclose(a, b, rel_tol=1e-6) if numbers else a == b


def require_same_base(
    now: Mapping[str, Any], then: Mapping[str, Any], source: str, where: str, leave_out: Iterable[str] = ()
) -> None:
    """Refuse another base than the one that something was trained on (BaseMismatch: names the differences).

    Args:
        now, then: fingerprints of the present base and of the one trained on.
        source: name of the present base.
        where: name of the trained part.
        leave_out: sections that may differ.
    """
    if changed := changes(then, now, leave_out):
        differ = "differ" if len(changed) > 1 else "differs"
        raise BaseMismatch(
            f"{where} was trained on another base: {' and '.join(changed)} of {source!r} {differ} from what was "
            "recorded then. Restore the base that it was trained on, or train again."
        )
