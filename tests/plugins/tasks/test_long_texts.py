"""Of texts that are far too long, tokenizers read what is kept of them alone, and that changes nothing."""

import random
from dataclasses import replace

import pytest
from tiny import byte_level_tokenizer, unigram_tokenizer, word_piece_tokenizer
from transformers import AutoTokenizer

from ftengine.api import Labels
from ftengine.model import tokens
from ftengine_builtins.tasks.causal_lm import CausalLM
from ftengine_builtins.tasks.seq2seq_lm import Seq2SeqLM
from ftengine_builtins.tasks.text_classification import TextClassification
from ftengine_builtins.tasks.token_classification import TokenClassification

LIMIT = 16
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
draw = random.Random(0)
WORDS = [draw.choice(["the", "house", "naïve", "12345", "it's", "a,b", "e-mail", "(so)"]) for _ in range(2000)]
TEXTS = {
    "words": " ".join(WORDS),
    "lines": "\n".join(WORDS),
    "blanks": "a" + " " * 3000 + "b c" + " \n" * 3000 + "d",
    "numbers": ", ".join(str(draw.randrange(10**9)) for _ in range(1000)),
    "chinese": "".join(chr(0x4E00 + draw.randrange(900)) + "。" * (i % 9 == 0) for i in range(4000)),
    "one letter": "a" * 9000,
    "one word": "".join(draw.choice("abcdefgh") for _ in range(9000)),
    "emoji": "👩‍👩‍👧 x " * 1500,
}


def read(processor, monkeypatch, encode):
    """Return what is encoded where 1,000 characters are a long text, and require that it is as where none is."""
    call, longest = type(processor).__call__, []

    def counting(self, *texts, **options):
        longest.append(max(map(len, texts), default=len(options.get("text_target", ""))))
        return call(self, *texts, **options)

    monkeypatch.setattr(type(processor), "__call__", counting)
    found = []
    for long in (10**9, 1000):
        monkeypatch.setattr(tokens, "LONG_TEXT", long)
        longest.clear()
        found.append(encode())
    whole, cut = (replace(features, full_length=None) for features in found)
    assert cut == whole
    return max(longest), found[1].full_length / found[0].full_length


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "kind",
    [
        "byte-level",
        "unigram",
        "word pieces",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("smollm2", "minilm")),
    ],
)
def test_a_text_is_cut_as_all_of_its_tokens_are(request, monkeypatch, kind, side):
    if kind == "smollm2":
        processor = request.getfixturevalue("smollm2_tokenizer")
    elif kind == "minilm":
        processor = AutoTokenizer.from_pretrained(request.getfixturevalue("minilm_folder"))
    elif kind == "byte-level":
        processor = byte_level_tokenizer(pad_token=None)
    else:
        processor = {"unigram": unigram_tokenizer, "word pieces": word_piece_tokenizer}[kind]()
    monkeypatch.setattr(processor, "truncation_side", side)
    language = CausalLM(CausalLM.Config(max_length=LIMIT, truncate=side))
    classes = TextClassification(TextClassification.Config(pair="pair", max_length=LIMIT))
    for name, text in TEXTS.items():
        with monkeypatch.context() as patch:
            longest, estimate = read(processor, patch, lambda text=text: language.encode({"text": text}, processor))
            assert 0.5 < estimate < 2 or name == "blanks"
            few = () if kind in ("byte-level", "smollm2") else ("chinese", "one letter", "one word")  # one [UNK], say
            assert longest <= 4000 or name in ("blanks", *few)
        with monkeypatch.context() as patch:
            row = {"text": text, "pair": "and the other text"}
            read(processor, patch, lambda row=row: classes.read(row, processor, None))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("template", ["found", "marked"])
def test_a_conversation_is_cut_and_labelled_as_a_whole_one(llama_tokenizer, monkeypatch, template, side):
    if template == "marked":
        llama_tokenizer.chat_template = MARKED
    task = CausalLM(CausalLM.Config(max_length=LIMIT, truncate=side))
    for first, answer in (("Hello?", TEXTS["words"]), (TEXTS["words"], "Yes, of course.")):
        turns = [{"role": "user", "content": first}, {"role": "assistant", "content": answer}]
        with monkeypatch.context() as patch:
            longest, _ = read(
                llama_tokenizer, patch, lambda turns=turns: task.encode({"messages": turns}, llama_tokenizer)
            )
            assert longest < 3000


def test_words_and_completions_are_cut_too(monkeypatch):
    processor = word_piece_tokenizer()
    task = TokenClassification(TokenClassification.Config(max_length=LIMIT))
    task.labels = Labels("tags", ("O", "X"))
    row = {"tokens": WORDS, "tags": ["O", "X"] * (len(WORDS) // 2)}
    for side in ("right", "left"):
        monkeypatch.setattr(processor, "truncation_side", side)
        with monkeypatch.context() as patch:
            assert read(processor, patch, lambda: task.encode(row, processor))[0] < 3000
    processor, pair = unigram_tokenizer(), {"prompt": TEXTS["words"], "completion": TEXTS["lines"]}
    options = Seq2SeqLM.Config(max_length=LIMIT, max_completion_length=LIMIT)
    assert read(processor, monkeypatch, lambda: Seq2SeqLM(options).encode(pair, processor))[0] < 3000
