"""Words, their tags, and which token carries each."""

import pytest
import torch
import torch.nn.functional as F
from expected import raises
from transformers import AutoTokenizer

from ftengine.api import LoadRequest
from ftengine.errors import DataError, RecipeError
from ftengine.model import Criterion
from ftengine.model.token_loss import IGNORED
from ftengine.model.tokens import encode_words, find_words
from ftengine_builtins.loaders.transformers import TransformersLoader
from ftengine_builtins.tasks.iob2 import completed, entities, foreign_tag, is_iob2
from ftengine_builtins.tasks.token_classification import TokenClassification, TokenClassificationConfig

ROWS = [
    {"tokens": ["Anna", "Smith", "lives", "in", "Paris"], "tags": ["B-PER", "I-PER", "O", "O", "B-LOC"]},
    {"tokens": ["the", "quick", "fox"], "tags": ["O", "O", "O"]},
    {"tokens": ["France", "!"], "tags": ["B-LOC", "O"]},
]
TEXT = {"text": "Anna Smith lives in Paris.", "spans": [{"start": 0, "end": 10, "label": "PER"}]}


def task(train=ROWS, validation=(), **options):
    made = TokenClassification(TokenClassificationConfig(**options))
    made.labels = made.learn_labels({"train": list(train)} | ({"validation": list(validation)} if validation else {}))
    return made


@pytest.fixture(scope="session")
def bert_tokenizer(bert_folder):
    return AutoTokenizer.from_pretrained(bert_folder)


@pytest.fixture
def loaded(bert_folder):
    torch.manual_seed(0)
    bound = task()
    loaded = TransformersLoader().load(
        LoadRequest(str(bert_folder), "token-classification", bound.labels, dtype="float64")
    )
    loaded.module.eval()
    return loaded


def batch_of(bound, rows, processor):
    return bound.collate([bound.encode(row, processor) for row in rows], processor)


# The scheme


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["O", "B-A", "I-A", "O"], [("A", 1, 3)]),
        (["B-A", "B-A"], [("A", 0, 1), ("A", 1, 2)]),
        (["B-A", "I-B"], [("A", 0, 1), ("B", 1, 2)]),
        (["I-A", "I-A", "O", "I-A"], [("A", 0, 2), ("A", 3, 4)]),
        (["B-A", "O", "I-A"], [("A", 0, 1), ("A", 2, 3)]),
        (["B-a-b", "I-a-b"], [("a-b", 0, 2)]),
        ([], []),
    ],
)
def test_entities_are_those_of_the_conll_evaluation(tags, expected):
    assert entities(tags) == expected


def test_tags_of_other_schemes_are_known():
    assert is_iob2(["O", "B-X", "I-Y"])
    assert not is_iob2(["O"])
    assert not is_iob2(["O", "NN"])
    assert foreign_tag(["O", "B-X", "E-X", "S-X"]) == "E-X"
    assert foreign_tag(["NN", "E-mail"]) is None
    assert completed(["O", "I-X"]) == {"O", "B-X", "I-X"}


# Labels


def test_labels_begin_with_o_and_hold_both_parts_of_every_entity():
    assert task().labels.names == ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")


def test_an_entity_that_training_lacks_is_refused():
    with raises(DataError, "'B-ORG'", "validation"):
        task(validation=[{"tokens": ["x"], "tags": ["B-ORG"]}])


def test_a_richer_scheme_is_not_taken_for_plain_tags_by_mistake():
    rows = [{"tokens": ["a", "b", "c"], "tags": ["B-X", "E-X", "O"]}]
    with raises(DataError, "'E-X'", "IOB2", "task.scheme"):
        task(rows)
    assert task(rows, scheme="plain").labels.names == ("O", "B-X", "E-X")


def test_numbers_get_their_names():
    rows = [{"tokens": ["Anna", "runs"], "tags": [1, 0]}]
    bound = task(rows, names=["O", "B-PER"])
    assert bound.labels.names == ("O", "B-PER", "I-PER")
    with raises(DataError, "tag 2", "task.names"):
        bound.encode({"tokens": ["x"], "tags": [2]}, None)


# Rows


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags"),
        ({"tokens": "a b", "tags": "O O"}, "`tokens` is 'a b'; it must be a list"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "token 2 is ' '"),
        ({"tokens": [], "tags": []}, "`tokens` is empty"),
        ({"tokens": ["a"], "tags": None}, "`tags` is missing"),
        ({"tags": ["O"]}, "neither `tokens` nor `text`"),
        ({"text": "a b", "spans": None}, "`spans` is missing"),
        ({"text": "a b", "spans": [{"start": 0, "stop": 1, "label": "X"}]}, "must have `start`, `end` and `label`"),
        (
            {"text": "a b", "spans": [{"start": 0, "end": 9, "label": "X"}]},
            "from 0 to 9; the text has the characters 0",
        ),
        ({"text": "a b", "spans": [{"start": 1, "end": 2, "label": "X"}]}, "holds no word: ' '"),
        (
            {"text": "ab", "spans": [{"start": 0, "end": 1, "label": "X"}, {"start": 1, "end": 2, "label": "Y"}]},
            "spans 'X' and 'Y' share a word",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_refused(row, message, bert_tokenizer):
    with pytest.raises(DataError) as caught:
        task().encode(row, bert_tokenizer)
    assert message in str(caught.value)


def test_other_columns_are_refused_with_a_renaming():
    with raises(DataError, "{tags: ner_tags}"):
        task().check_columns(["tokens", "ner_tags", "id"])
    task().check_columns(["tokens", "tags"])
    task().check_columns(["text", "spans"])


def test_spans_and_tags_say_the_same(bert_tokenizer):
    bound = task()
    tokens = {"tokens": ["Anna", "Smith", "lives", "in", "Paris", "."], "tags": ["B-PER", "I-PER", "O", "O", "O", "O"]}
    a, b = bound.encode(TEXT, bert_tokenizer), bound.encode(tokens, bert_tokenizer)
    assert (a.inputs["input_ids"], a.inputs["labels"]) == (b.inputs["input_ids"], b.inputs["labels"])


def test_a_span_is_widened_to_whole_words(bert_tokenizer):
    inner = {"text": TEXT["text"], "spans": [{"start": 2, "end": 7, "label": "PER"}]}
    assert task().encode(inner, bert_tokenizer) == task().encode(TEXT, bert_tokenizer)


def test_rows_with_the_same_words_are_duplicates_whatever_their_tags():
    bound = task()
    other = {"tokens": ROWS[0]["tokens"], "tags": ["O"] * 5}
    assert (
        bound.view(ROWS[0]).identity
        == bound.view(other).identity
        == bound.view({"text": "Anna Smith lives in Paris"}).identity
    )
    assert bound.view({"tokens": None}).identity == [None, None]


def test_chinese_and_japanese_are_words_by_character():
    words = [TEXT[a:b] for TEXT in ["我住在Paris。"] for a, b in find_words(TEXT)]
    assert words == ["我", "住", "在", "Paris", "。"]


# Alignment


def test_the_first_piece_of_a_word_carries_its_tag(bert_tokenizer):
    bound = task()
    features = bound.encode(ROWS[0], bert_tokenizer)
    tokens = bert_tokenizer.convert_ids_to_tokens(features.inputs["input_ids"])
    for token, label in zip(tokens, features.inputs["labels"], strict=True):
        assert (label == IGNORED) == (token.startswith("##") or token in ("[CLS]", "[SEP]")), token
    assert [bound.labels.names[x] for x in features.inputs["labels"] if x != IGNORED] == ROWS[0]["tags"]
    assert features.weight == 5


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    with raises(RecipeError, "Slow"):
        encode_words(Slow(), "a", [(0, 1)], 8)


# Loss and answers


def test_loss_is_the_cross_entropy_of_tagged_words(loaded):
    bound = task()
    batch = batch_of(bound, ROWS, loaded.processor)
    total, weight = bound.loss(loaded.module, batch, Criterion())
    logits = loaded.module(**{k: v for k, v in batch.items() if k != "labels"}).logits
    mean = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED)
    assert weight == 10
    torch.testing.assert_close(total / weight, mean, rtol=1e-10, atol=0)


def test_predictions_are_words_in_order_and_padding_changes_nothing(loaded):
    bound = task()
    together = bound.predict(loaded.module, batch_of(bound, ROWS, loaded.processor))
    alone = [bound.predict(loaded.module, batch_of(bound, [row], loaded.processor))[0] for row in ROWS]
    assert together == alone
    assert [[bound.labels.names[i] for i in p["tags"]] for p in together] == [row["tags"] for row in ROWS]


def test_what_was_learnt_is_answered_in_the_shape_of_the_row(bert_folder):
    bound = task()
    torch.manual_seed(0)
    loaded = TransformersLoader().load(LoadRequest(str(bert_folder), "token-classification", bound.labels))
    optimizer = torch.optim.Adam(loaded.module.parameters(), lr=5e-3)
    batch = batch_of(bound, [*ROWS, TEXT], loaded.processor)
    loaded.module.eval()
    for _ in range(60):
        optimizer.zero_grad()
        bound.loss(loaded.module, batch, Criterion())[0].backward()
        optimizer.step()
    asked = [{"tokens": ROWS[0]["tokens"]}, {"text": TEXT["text"]}]
    tags, spans = bound.infer(loaded, asked)
    assert tags == {"tags": ROWS[0]["tags"]}
    assert spans["spans"][0] == {"start": 0, "end": 10, "label": "PER", "text": "Anna Smith"}


def test_plain_tags_of_a_text_are_spans_of_its_words(bert_folder):
    bound = task([{"tokens": ["the", "fox"], "tags": ["DET", "NOUN"]}])
    loaded = TransformersLoader().load(LoadRequest(str(bert_folder), "token-classification", bound.labels))
    (answer,) = bound.infer(loaded, [{"text": "the fox"}])
    assert [(span["start"], span["end"]) for span in answer["spans"]] == [(0, 3), (4, 7)]


def test_plain_tags_that_look_like_entities_are_spans_of_single_words(bert_folder):
    bound = task([{"tokens": ["the", "fox"], "tags": ["B-X", "O"]}], scheme="plain")
    again = TokenClassification(TokenClassificationConfig(scheme="plain"))
    again.labels = bound.labels
    loaded = TransformersLoader().load(LoadRequest(str(bert_folder), "token-classification", bound.labels))
    for each in (bound, again):
        (answer,) = each.infer(loaded, [{"text": "the fox"}])
        assert [(span["start"], span["end"]) for span in answer["spans"]] == [(0, 3), (4, 7)]
        assert {span["label"] for span in answer["spans"]} <= {"B-X", "O"}


def test_plan_shows_each_tag_after_its_token(bert_tokenizer):
    bound = task()
    shown = bound.decode_example(bound.encode(ROWS[2], bert_tokenizer), bert_tokenizer)
    assert "".join(text for text, _ in shown) == "[CLS] france B-LOC ! O [SEP] "
    assert [text for text, trained in shown if trained] == ["B-LOC", "O"]
