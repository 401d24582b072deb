"""Whisper's tokens around a transcript: start, language, task, and whether there are timestamps (Radford et al. 2022,
arXiv:2212.04356, figure 1)."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from ftengine.errors import DataError, RecipeError, did_you_mean, shown

START, TRANSCRIBE, TRANSLATE, NO_TIMESTAMPS = "<|startoftranscript|>", "transcribe", "translate", "<|notimestamps|>"

ENGLISH_ONLY = 51_864
"""Tokens of Whisper's models of English alone, which know the tokens of languages and were not trained on them."""


_vocabularies: WeakKeyDictionary[Any, dict[str, int]] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Any) -> dict[str, int]:
    """Return a tokenizer's tokens, which it makes a dictionary of at each call, for tenths of a second."""
    if tokenizer not in _vocabularies:
        _vocabularies[tokenizer] = tokenizer.get_vocab()
    return _vocabularies[tokenizer]


def is_whisper(tokenizer: Any) -> bool:
    """Say whether a tokenizer has Whisper's start of a transcript."""
    return START in vocabulary_of(tokenizer)


def is_multilingual(tokenizer: Any) -> bool:
    """Say whether a Whisper model is told the language: all but those of English alone (`.en`)."""
    vocabulary = vocabulary_of(tokenizer)
    return len(vocabulary) != ENGLISH_ONLY and "<|en|>" in vocabulary


def language_code(language: str, tokenizer: Any) -> str:
    """Return the code of a language given by code or English name (RecipeError: the model does not know it)."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    name = language.strip().lower().strip("<|>")
    code = TO_LANGUAGE_CODE.get(name, name)
    vocabulary = vocabulary_of(tokenizer)
    if f"<|{code}|>" not in vocabulary and "-" in code:
        code = code.partition("-")[0]  # a locale, such as pt-BR
    if f"<|{code}|>" not in vocabulary:
        known = {name: code for name, code in TO_LANGUAGE_CODE.items() if f"<|{code}|>" in vocabulary}
        raise RecipeError(
            f"task.language is {shown(language)}, which this model does not know. It knows {len(known)} languages, "
            "by English name or code, such as english or en." + did_you_mean(name, [*known, *known.values()])
        )
    return code


def require_language(language: str | None, column: str | None, tokenizer: Any) -> None:
    """Raise RecipeError where a recipe's language does not suit a model."""
    if not is_whisper(tokenizer):
        return
    if not is_multilingual(tokenizer):
        if column is not None or (language is not None and language.strip().lower() not in ("en", "english")):
            raise RecipeError(
                f"task.{'language' if column is None else 'language_column'} is {shown(language or column)}, and this "
                "Whisper model was trained on English alone. Leave it out, or use a multilingual model."
            )
        return
    if language is None and column is None and getattr(tokenizer, "language", None) is None:
        raise RecipeError(
            "this Whisper model knows many languages, and the recipe does not say which one the transcripts are in. "
            "Set task.language, such as en or german, or task.language_column to a column that says it of each row."
        )
    if language is not None:
        language_code(language, tokenizer)


def prompt_tokens(tokenizer: Any, language: str | None, task: str) -> list[int]:
    """Return the tokens before a transcript, as transformers' generate has them; the language's only of multilingual
    models.

    Raises:
        DataError: the language is not given.
    """
    tokens = [START]
    if is_multilingual(tokenizer):
        if language is None:
            raise DataError("the row states no language, which this Whisper model must be told.")
        tokens += [f"<|{language_code(language, tokenizer)}|>", f"<|{task}|>"]
    return tokenizer.convert_tokens_to_ids([*tokens, NO_TIMESTAMPS])
