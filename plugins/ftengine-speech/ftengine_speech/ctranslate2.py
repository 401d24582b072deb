"""Whisper models of CTranslate2 (faster-whisper) as transformers' models, to be tuned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftengine.api import LoadedModel, LoadRequest, ModelLoader
from ftengine.errors import FtengineError, SourceError, json_of_file
from ftengine_speech.ctranslate2_file import Variables, is_whisper_file, read_variables

WEIGHTS, CONFIG, TOKENIZER = "model.bin", "config.json", "tokenizer.json"
HEAD = "speech-seq2seq"
PACKAGE = "package://"
MULTILINGUAL = 51_865
"""Tokens from which a Whisper model knows other languages than English."""
GELU = 3
TIMESTAMPS = 1501
"""Tokens of times from 0 to 30 s, in steps of 0.02 s."""

MODULES = {
    "self_attention/linear_1": "self_attn.out_proj",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
    "ffn/layer_norm": "final_layer_norm",
    "conv1": "conv1",
    "conv2": "conv2",
    "layer_norm": "layer_norm",
}
"""A module's name in CTranslate2 and in transformers, within a layer or the encoder or decoder."""
JOINED = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
}
"""Modules whose rows CTranslate2 stacks into one."""
PARAMETERS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
TABLES = {
    "decoder/embeddings/weight": "model.decoder.embed_tokens.weight",
    "decoder/position_encodings/encodings": "model.decoder.embed_positions.weight",
    "encoder/position_encodings/encodings": "model.encoder.embed_positions.weight",
}
NAME = re.compile(r"(encoder|decoder)/(?:layer_(\d+)/)?(.+)/(weight|bias|gamma|beta)")
SCALARS = frozenset(
    f"{side}/{name}"
    for side in ("encoder", "decoder")
    for name in (
        *("activation", "alibi", "alignment_heads", "alignment_layer", "multi_query_attention", "num_heads"),
        *("num_languages", "pre_norm", "scale_embeddings", "scale_outputs", "start_from_zero_embedding"),
    )
)
"""Variables that say how the model computes."""


class CTranslate2Loader(ModelLoader):
    """Load a Whisper model of CTranslate2, as faster-whisper uses it: a folder, or package://NAME/PATH.

    The stacked projections are divided, and the weights become transformers' in float32 (half precision and bytes are
    what a model is run with, not tuned in). Nothing in the files is executed.
    """

    name = "ctranslate2"

    def accepts(self, source: str) -> bool:
        """Accept a folder whose model.bin is a Whisper model of CTranslate2."""
        try:
            return is_whisper_file(_folder(source) / WEIGHTS)
        except (FtengineError, OSError, ValueError):
            return False

    def check_source(self, source: str) -> None:
        for name in (WEIGHTS, CONFIG, TOKENIZER):
            if not (_folder(source) / name).is_file():
                raise SourceError(f"{source!r} has no {name}. A folder of CTranslate2 has {WEIGHTS} and {TOKENIZER}.")
        _Whisper(source)

    def check_head(self, source: str, head: str) -> None:
        if head != HEAD:
            raise SourceError(f"{source!r} is a Whisper model, which writes what is said. Use task speech-to-text.")

    def load_processor(self, source: str) -> Any:
        self.check_source(source)
        return _Whisper(source).processor()

    def load_skeleton(self, request: LoadRequest) -> LoadedModel:
        import torch

        return self._loaded(request, torch.device("meta"))

    def load(self, request: LoadRequest) -> LoadedModel:
        import torch

        return self._loaded(request, torch.device("cpu"))

    def _loaded(self, request: LoadRequest, device: Any) -> LoadedModel:
        import torch
        from transformers import WhisperForConditionalGeneration

        self.check_head(request.source, request.head)
        self.check_source(request.source)
        found = _Whisper(request.source)
        config = found.config()
        dtype = torch.float32 if request.dtype == "auto" else getattr(torch, request.dtype)
        with torch.device("meta"):
            module: Any = WhisperForConditionalGeneration(config)
        module.to(dtype)
        expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        tensors = {name: torch.from_numpy(value).to(device, dtype) for name, value in found.weights()}
        given = {name: tuple(value.shape) for name, value in tensors.items()}
        names = (expected.keys() | given.keys()) - {"proj_out.weight"}  # which is tied to the embeddings
        if wrong := {name for name in names if expected.get(name) != given.get(name)}:
            raise SourceError(
                f"the variables of {request.source!r} are not those of a Whisper model: {len(wrong)} are missing, "
                f"unexpected or of another shape ({', '.join(sorted(wrong)[:3])}). Convert the model again."
            )
        module.load_state_dict(tensors, strict=False, assign=True)
        module.tie_weights()
        module.requires_grad_(requires_grad=True)
        module.model.encoder.embed_positions.requires_grad_(requires_grad=False)  # sinusoids, as in transformers
        module.eval()
        module.generation_config = found.generation_config()
        processor = found.processor() if request.processor else None
        limit = config.max_target_positions
        return LoadedModel(module, processor, request.source, request.head, max_length=limit)


def _folder(source: str) -> Path:
    if not source.startswith(PACKAGE):
        return Path(source)
    from ftengine_builtins.loaders import PackageLoader  # imports transformers

    folder: Path = PackageLoader.place(source)
    return folder


class _Whisper:
    """A Whisper model in a folder of CTranslate2."""

    def __init__(self, source: str) -> None:
        self._source, self._folder = source, _folder(source)
        self._variables = read_variables(self._folder / WEIGHTS, source)
        self._settings = self._json(CONFIG)
        if odd := {name for name in self._variables if name not in TABLES and not _placed(name)} - SCALARS:
            raise SourceError(f"{source!r} has variables that no Whisper model has: {', '.join(sorted(odd)[:3])}.")
        if (activation := self._number("decoder/activation", GELU)) != GELU:
            raise SourceError(f"{source!r} has activation {activation} of CTranslate2; Whisper's is GELU ({GELU}).")

    def config(self) -> Any:
        from transformers import WhisperConfig

        vocabulary, width = self._shape("decoder/embeddings/weight", 2)
        _, mels, _ = self._shape("encoder/conv1/weight", 3)
        ffn = {side: self._shape(f"{side}/layer_0/ffn/linear_0/weight", 2)[0] for side in ("encoder", "decoder")}
        layers = {side: self._layers(side) for side in ("encoder", "decoder")}
        heads = {side: self._number(f"{side}/num_heads", max(1, width // 64)) for side in ("encoder", "decoder")}
        if any(count < 1 or width % count for count in heads.values()):
            raise SourceError(f"{self._source!r} states {heads['encoder']} attention heads for {width} dimensions.")
        end, largest = self._token("<|endoftext|>"), max(self._tokens().values())
        if largest >= vocabulary:
            raise SourceError(
                f"{TOKENIZER} of {self._source!r} has {largest + 1:,} tokens, the model has {vocabulary:,}."
            )
        settings: dict[str, Any] = {
            "vocab_size": vocabulary,
            "num_mel_bins": mels,
            "d_model": width,
            "encoder_layers": layers["encoder"],
            "decoder_layers": layers["decoder"],
            "encoder_attention_heads": heads["encoder"],
            "decoder_attention_heads": heads["decoder"],
            "encoder_ffn_dim": ffn["encoder"],
            "decoder_ffn_dim": ffn["decoder"],
            "max_source_positions": self._shape("encoder/position_encodings/encodings", 2)[0],
            "max_target_positions": self._shape("decoder/position_encodings/encodings", 2)[0],
            "decoder_start_token_id": self._token("<|startoftranscript|>"),
            "begin_suppress_tokens": self._numbers("suppress_ids_begin"),
            "architectures": ["WhisperForConditionalGeneration"],
        }
        return WhisperConfig(**settings, bos_token_id=end, eos_token_id=end, pad_token_id=end)

    def generation_config(self) -> Any:
        """Return what transformers' generate needs to know, as openai's models on the hub state it."""
        from transformers import GenerationConfig

        config = self.config()
        settings: dict[str, Any] = {
            "max_length": config.max_target_positions,
            "suppress_tokens": self._numbers("suppress_ids"),
            "begin_suppress_tokens": self._numbers("suppress_ids_begin"),
            "no_timestamps_token_id": self._token("<|notimestamps|>"),
            "prev_sot_token_id": self._token("<|startofprev|>"),
            "alignment_heads": self._settings.get("alignment_heads"),
            "is_multilingual": config.vocab_size >= MULTILINGUAL,
            "return_timestamps": False,
            "max_initial_timestamp_index": 50,
            "decoder_start_token_id": config.decoder_start_token_id,
            **{name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        }
        if settings["is_multilingual"]:
            tokens = self._tokens()
            codes = set(self._numbers("lang_ids") or ())
            settings["lang_to_id"] = {name: number for name, number in tokens.items() if number in codes}
            settings["task_to_id"] = {task: self._token(f"<|{task}|>") for task in ("transcribe", "translate")}
        return GenerationConfig(**settings)

    def processor(self) -> Any:
        """Return feature extractor and tokenizer, with the tokens of times that the file may lack."""
        from tokenizers import AddedToken
        from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

        content = self._json(TOKENIZER)
        model = content.get("model") or {}
        vocabulary, merges = model.get("vocab"), model.get("merges")
        if not isinstance(vocabulary, dict) or not isinstance(merges, list):
            raise SourceError(f"{TOKENIZER} of {self._source!r} holds no byte-pair encoding (model.vocab, merges).")
        pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in merges]
        tokenizer: Any = WhisperTokenizer(vocab=vocabulary, merges=pairs)
        tokens = self._tokens()
        times = {f"<|{i * 0.02:.2f}|>" for i in range(TIMESTAMPS)}
        added = [name for name, _ in sorted(tokens.items(), key=lambda item: item[1]) if name not in times]
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [AddedToken(name, normalized=False, special=True) for name in added]}
        )
        tokenizer.add_tokens([AddedToken(f"<|{i * 0.02:.2f}|>", normalized=False) for i in range(TIMESTAMPS)])
        size = self._shape("decoder/embeddings/weight", 2)[0]
        moved = [name for name, number in tokens.items() if tokenizer.convert_tokens_to_ids(name) != number]
        if moved or len(tokenizer) != size:
            raise SourceError(
                f"{TOKENIZER} of {self._source!r} makes {len(tokenizer):,} tokens with those of times, and the model "
                f"has {size:,}"
                + (f"; {moved[0]!r} gets another number" if moved else "")
                + ". Take both from one model."
            )
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.set_prefix_tokens()
        tokenizer.model_max_length = self._shape("decoder/position_encodings/encodings", 2)[0]
        mels = self._shape("encoder/conv1/weight", 3)[1]
        return WhisperProcessor(WhisperFeatureExtractor(feature_size=mels), tokenizer)

    def weights(self) -> Iterator[tuple[str, Any]]:
        """Yield the variables in float32 under transformers' names, one file variable after the other."""
        for old, new in TABLES.items():
            yield new, self._variables.weight(old)
        for name in self._variables:
            if name not in TABLES and (placed := _placed(name)):
                yield from _divided(self._variables, name, *placed).items()

    def _layers(self, side: str) -> int:
        numbers = {
            int(match[2])
            for name in self._variables
            if (match := NAME.fullmatch(name)) and match[1] == side and match[2]
        }
        if numbers != set(range(len(numbers))) or not numbers:
            raise SourceError(f"{self._source!r} lacks layers of the {side}: it has {sorted(numbers)[:8]}.")
        return len(numbers)

    def _shape(self, name: str, rank: int) -> tuple[int, ...]:
        value = self._variables.get(name)
        if value is None or value.ndim != rank or not value.size:
            raise SourceError(
                f"{self._source!r} has no variable {name!r} of {rank} dimensions, as Whisper's models have."
            )
        return value.shape

    def _number(self, name: str, default: int) -> int:
        value = self._variables.get(name)
        return default if value is None or value.size != 1 else int(value.reshape(()))

    def _numbers(self, name: str) -> list[int] | None:
        values = self._settings.get(name)
        return [x for x in values if isinstance(x, int)] if isinstance(values, list) else None

    def _token(self, name: str) -> int:
        if name not in (tokens := self._tokens()):
            raise SourceError(f"{TOKENIZER} of {self._source!r} has no token {name!r}, which Whisper's models have.")
        return tokens[name]

    def _tokens(self) -> dict[str, int]:
        added = self._json(TOKENIZER).get("added_tokens")
        rows = added if isinstance(added, list) else []
        return {row["content"]: row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), int)}

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json_of_file(self._folder / name)
        except (OSError, ValueError) as error:
            raise SourceError(f"cannot read {name} of {self._source!r}: {error}.") from None
        if not isinstance(content, dict):
            raise SourceError(f"{name} of {self._source!r} holds no JSON object.")
        return content


def _placed(name: str) -> tuple[str, tuple[str, ...], str] | None:
    """Return where a variable belongs: the path before its modules, the modules, the parameter; None if nowhere."""
    match = NAME.fullmatch(name.removesuffix("_scale"))
    if name == "decoder/projection/weight":  # an alias of the embeddings
        return "", (), ""
    if match is None:
        return None
    side, layer, module, parameter = match.groups()
    modules = JOINED.get(module) or ((MODULES[module],) if module in MODULES else None)
    if modules is None:
        return None
    return f"model.{side}." + (f"layers.{layer}." if layer else ""), modules, PARAMETERS[parameter]


def _divided(variables: Variables, name: str, path: str, modules: tuple[str, ...], parameter: str) -> dict[str, Any]:
    """Return a variable under its names in transformers; keys have no bias there (in CTranslate2 it is zeros)."""
    if not modules or name.endswith("_scale"):
        return {}
    value = variables.weight(name)
    rows = len(value) // len(modules)
    parts: Iterator[tuple[str, Any]] = ((module, value[i * rows : (i + 1) * rows]) for i, module in enumerate(modules))
    keyless = (item for item in parts if not (item[0].endswith("k_proj") and parameter == "bias"))
    return {f"{path}{module}.{parameter}": part for module, part in keyless}
