"""An encoder-decoder that translates texts sentence by sentence."""

from collections.abc import Sequence
from typing import Any

import regex
import torch
from transformers import GenerationConfig

from ftengine.api import LoadedModel, LoadRequest
from ftengine.errors import SourceError
from ftengine.model import seeded
from ftengine.model.tokens import stack_tokens
from ftengine_builtins.loaders.transformers import TransformersLoader

HEAD = "seq2seq-lm"

SENTENCES = 16
"""Sentences translated at once."""

LONGEST = 256
"""Default limit of tokens in a sentence, as translation models are trained on such lengths."""

_LINE = regex.compile(r"[^\n]+")
_END = regex.compile(r"[.!?…]++[\"'”’)\]]*+\s++|[。！？]++[”’」』）]*+")
"""Ends of sentences inside a line; Chinese and Japanese have no blank after them."""


def find_sentences(text: str) -> list[tuple[int, int]]:
    """Return start and end of each sentence of a text, without blanks around it."""
    spans = []
    for line in _LINE.finditer(text):
        start = line.start()
        for end in [*(match.end() for match in _END.finditer(text, *line.span())), line.end()]:
            sentence = text[start:end].strip()
            if sentence:
                first = text.index(sentence, start)
                spans.append((first, first + len(sentence)))
            start = end
    return spans


def check_translator(source: str) -> None:
    """Raise SourceError if a model is missing, incomplete or not an encoder-decoder; reads no weights."""
    loader = TransformersLoader()
    if not loader.accepts(source):
        raise SourceError(f"{source!r} is neither a folder with a model nor the name of a hub model (owner/name).")
    loader.check_source(source)
    loader.load_processor(source)
    skeleton = loader.load_skeleton(LoadRequest(source, HEAD, processor=False))
    if not hasattr(skeleton.module, "generate"):
        raise SourceError(f"{source!r} is a {type(skeleton.module).__name__}, which cannot generate text.")


def load_translator(source: str, device: str) -> LoadedModel:
    """Load a model (safetensors, no code of its own) and its tokenizer, for use without gradients."""
    with seeded(0):  # keep the random state of the run
        loaded = TransformersLoader().load(LoadRequest(source, HEAD, dtype="float32"))
    resolved = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    loaded.module.requires_grad_(False).eval().to(torch.device(resolved))
    return loaded


class Translator:
    """Translates texts with one model, an encoder-decoder; `prefix` is put in front of each sentence."""

    def __init__(self, loaded: LoadedModel, prefix: str, config: Any) -> None:
        self._loaded, self._prefix, self._tokenizer = loaded, prefix, loaded.processor
        limits = [config.max_length or LONGEST, loaded.max_length, getattr(loaded.processor, "model_max_length", None)]
        self._limit = min(limit for limit in limits if limit)
        sampling = config.temperature > 0
        own = loaded.module.generation_config
        self._generation = GenerationConfig(
            **{k: v for k, v in own.to_dict().items() if k in TOKEN_SETTINGS and v is not None},
            max_new_tokens=self._limit - 1,  # the decoder's start token counts too
            do_sample=sampling,
            num_beams=config.beams,
            **({"temperature": config.temperature, "top_p": config.top_p, "top_k": 0} if sampling else {}),
        )

    def __call__(self, text: str, seed: int) -> str:
        """Translate a text; the result depends only on the text and the seed.

        A sentence stays as it is if its translation is empty, or if it cannot be split to the model's limit.
        """
        spans = [part for span in find_sentences(text) for part in self._parts(text, *span)]
        device = next(self._loaded.module.parameters()).device
        pieces, at = [], 0
        with seeded(seed, device), torch.no_grad(), torch.autocast(device.type, enabled=False):
            for first in range(0, len(spans), SENTENCES):
                chunk = spans[first : first + SENTENCES]
                for (start, stop), new in zip(chunk, self._translate([text[a:b] for a, b in chunk]), strict=True):
                    pieces += [text[at:start], new.strip() or text[start:stop]]
                    at = stop
        return "".join([*pieces, text[at:]])

    def _parts(self, text: str, start: int, stop: int) -> list[tuple[int, int]]:
        """Split a sentence at blanks until each part fits; leave out parts that are too long and have no blank."""
        if len(self._ids(text[start:stop])) <= self._limit:
            return [(start, stop)]
        blanks = [i for i in range(start + 1, stop - 1) if text[i].isspace()]
        if not blanks:
            return []
        middle = min(blanks, key=lambda i: abs(2 * i - start - stop))
        halves = [(start, middle), (middle + 1, stop)]
        return [part for a, b in halves if text[a:b].strip() for part in self._parts(text, a, b)]

    def _ids(self, sentence: str) -> list[int]:
        return self._tokenizer(self._prefix + sentence, verbose=False)["input_ids"]

    def _translate(self, sentences: Sequence[str]) -> list[str]:
        module = self._loaded.module
        batch = stack_tokens([{"input_ids": self._ids(sentence)} for sentence in sentences], self._tokenizer)
        device = next(module.parameters()).device
        inputs = {key: tensor.to(device) for key, tensor in batch.items()}
        output = module.generate(**inputs, generation_config=self._generation)
        return self._tokenizer.batch_decode(output, skip_special_tokens=True)


TOKEN_SETTINGS = (
    "bad_words_ids", "bos_token_id", "decoder_start_token_id", "eos_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "pad_token_id", "suppress_tokens",
)  # fmt: skip
"""Generation settings about tokens, taken from the model; settings of sampling come from the recipe."""
