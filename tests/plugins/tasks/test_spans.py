"""Which tokens of a text are labelled."""

import pytest
from tokenizers.processors import ByteLevel
from transformers import ByT5Tokenizer

from ftengine.model.tokens import encode_spans


def labelled(tokenizer, text, *spans):
    ids, labels = encode_spans(tokenizer, text, spans)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    return tokenizer.convert_ids_to_tokens([token for token in labels if token != -100])


@pytest.mark.slow
def test_a_token_across_the_boundary_is_labelled(smollm2_tokenizer):
    """ "A: " and "Paris" meet in the token " Paris"; without it nothing of the answer would be learnt."""
    assert labelled(smollm2_tokenizer, "Q? A: Paris", (6, 11)) == ["ĠParis"]


@pytest.mark.slow
def test_the_token_before_the_boundary_is_not_labelled(smollm2_tokenizer):
    assert labelled(smollm2_tokenizer, "Q? A: Paris", (5, 11)) == ["ĠParis"]


@pytest.mark.parametrize("blank", [" ", "  ", "   ", "\n\n", "\t", " \n \n"])
def test_blanks_inside_of_a_span_are_labelled(llama_tokenizer, blank):
    """RoBERTa's kind of tokenizer trims spaces off its offsets, to nothing where a token is all spaces."""
    llama_tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    text = f"Say{blank}{blank}yes{blank}"
    whole = llama_tokenizer.tokenize(text)
    assert labelled(llama_tokenizer, text, (0, len(text))) == whole
    assert labelled(llama_tokenizer, text, (3, len(text))) == whole[len(llama_tokenizer.tokenize("Say")) :]
    assert labelled(llama_tokenizer, text, (0, 3)) == llama_tokenizer.tokenize("Say")


@pytest.mark.slow
def test_all_bytes_of_a_character_are_labelled(smollm2_tokenizer):
    tokens = labelled(smollm2_tokenizer, "Smile: 😀!", (7, 8))
    assert smollm2_tokenizer.convert_tokens_to_string(tokens).strip() == "😀"


def test_a_tokenizer_without_offsets_labels_the_same():
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    assert labelled(tokenizer, "one two three four", (4, 7), (14, 18)) == list("twofour")
