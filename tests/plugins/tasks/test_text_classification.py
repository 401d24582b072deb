"""Labels, losses and answers of classifiers and regressors."""

import json

import pytest
import torch
import torch.nn.functional as F
from expected import raises
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ftengine.api import Labels, LoadedModel
from ftengine.errors import DataError, RecipeError
from ftengine.model import Criterion
from ftengine.testing.models import tiny_bert, word_piece_tokenizer
from ftengine_builtins.tasks.text_classification import TextClassification, TextClassificationConfig

TEXTS = ["The film was wonderful.", "The acting was terrible, and so was the music.", "Neither good nor bad", "Yes."]
LABELS = {
    "single": ["good", "bad", "mixed", "good"],
    "multi": [["film", "praise"], ["acting", "music"], [], ["praise"]],
    "regression": [4.5, -1.0, 0.25, 3.0],
}


def rows(kind):
    return [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS[kind], strict=True)]


def task(train=(), validation=(), **options):
    made = TextClassification(TextClassificationConfig(**options))
    splits = {"train": list(train)} | ({"validation": list(validation)} if validation else {})
    made.labels = made.learn_labels(splits)
    return made


def labels(values, **options):
    return task([{"text": "x", "label": value} for value in values], **options).labels


@pytest.fixture(scope="session")
def tokenizer(bert_folder):
    return AutoTokenizer.from_pretrained(bert_folder)


@pytest.fixture
def load(bert_folder, tokenizer):
    """A tiny BERT with a fresh head for a bound task."""

    def load(bound, dtype=torch.float64):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            bert_folder, num_labels=len(bound.labels.names), dtype=dtype
        ).eval()
        for parameter in model.classifier.parameters():
            torch.nn.init.normal_(parameter)
        return LoadedModel(model, tokenizer, "tiny", "sequence-classification", ("classifier",), bound.labels)

    return load


def make_batch(bound, kind, tokenizer):
    return bound.collate([bound.encode(row, tokenizer, max_length=128) for row in rows(kind)], tokenizer)


def model_inputs(batch):
    return {key: value for key, value in batch.items() if key != "labels"}


# What the labels are


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["b", "a", "b"], Labels("single", ("a", "b"))),
        (["b", None, "a", {}, "b "], Labels("single", ("a", "b"))),
        ([10, 9, 0, 9], Labels("single", ("0", "9", "10"))),
        (["10", "9", "0"], Labels("single", ("0", "9", "10"))),
        ([1.0, 2.0], Labels("single", ("1", "2"))),
        ([True, False], Labels("single", ("false", "true"))),
        (["1.5", "a"], Labels("single", ("1.5", "a"))),
        (["0.5", "1", "2", "2", "4", "placebo", "nan"], Labels("single", ("0.5", "1", "2", "4", "nan", "placebo"))),
        (["007", "7", "7.0", "7"], Labels("single", ("007", "7"))),
        (["m²", "m2", "m2"], Labels("single", ("m2", "m²"))),
        (["1", "nan"], Labels("single", ("1", "nan"))),
        ([0.5, 1, 2], Labels("regression", ("label",))),
        (["0.5", "1"], Labels("regression", ("label",))),
        (["0.5", "n/a", "n/a", "nan", "nan"], Labels("regression", ("label",))),
        ([["b", "a"], []], Labels("multi", ("a", "b"))),
        ([["b"], "a;c"], Labels("multi", ("a", "b", "c"))),
    ],
)
def test_kind_and_names_follow_from_training(values, expected):
    assert labels(values) == expected


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (["1.5", "2.5"], {"kind": "single"}, Labels("single", ("1.5", "2.5"))),
        ([1, 2, 5], {"kind": "regression", "label": "label"}, Labels("regression", ("label",))),
        (["b; a", "", "c"], {"kind": "multi"}, Labels("multi", ("a", "b", "c"))),
        (["b|a", "c;d"], {"kind": "multi", "separator": "|"}, Labels("multi", ("a", "b", "c;d"))),
        ([["a"], []], {}, Labels("multi", ("a",))),
    ],
)
def test_the_kind_can_be_given(values, options, expected):
    assert labels(values, **options) == expected


@pytest.mark.parametrize("values", [["good", "long", "good; long"], ["a;b", "b;c", "c;a"], [1, 2, "1;2"]])
def test_a_label_that_may_be_several_is_refused_until_the_kind_is_given(values):
    with raises(DataError, "'label'", "=multi."):
        labels(values)
    assert labels(values, kind="single").names == tuple(sorted(map(str, values)))
    assert all(";" not in name for name in labels(values, kind="multi").names)


def test_numbers_with_decimal_commas_are_not_taken_for_names():
    with raises(DataError, "1,762", "1.762", "task.kind=single"):
        labels(["1,762", "3", "2,5"])
    assert labels(["1,762", "3", "2,5"], kind="single").names == ("1,762", "2,5", "3")
    assert labels(["1,762", "3", "many"]).names == ("1,762", "3", "many")


@pytest.mark.parametrize("values", [["a", "a"], [3], [], [None, None]])
def test_fewer_than_two_labels_are_refused(values):
    with raises(DataError, "label"):
        labels(values)


def test_a_label_outside_of_training_is_refused_while_its_row_is_read():
    reached = []

    def validation():
        for row in [{"text": "x", "label": "a"}, {"text": "x", "label": "goood"}, {"text": "x", "label": "b"}]:
            reached.append(row["label"])
            yield row

    made = TextClassification()
    with raises(DataError, "'goood'", "'good'", "validation"):
        made.labels = made.learn_labels(
            {"train": [{"label": x} for x in ("a", "b", "good")], "validation": validation()}
        )
    assert reached == ["a", "goood"]


@pytest.mark.parametrize("kind", LABELS)
def test_labels_are_all_that_is_learnt(kind, tokenizer):
    bound, restored = task(rows(kind)), TextClassification()
    restored.labels = Labels(bound.labels.kind, bound.labels.names)
    assert restored.predicts == bound.predicts
    assert restored.evaluators == bound.evaluators
    assert restored.encode(rows(kind)[0], tokenizer) == bound.encode(rows(kind)[0], tokenizer)


# How rows are encoded


def test_a_pair_is_encoded_as_a_pair(tokenizer):
    bound = task([{"a": "x", "b": "y", "c": name} for name in "no"], text="a", pair="b", label="c")
    features = bound.encode({"a": TEXTS[0], "b": TEXTS[1], "c": "o"}, tokenizer)
    expected = tokenizer(TEXTS[0], TEXTS[1])
    assert features.inputs["input_ids"] == expected["input_ids"]
    assert features.inputs["token_type_ids"] == expected["token_type_ids"]
    assert 1 in features.inputs["token_type_ids"]


@pytest.mark.parametrize(("max_length", "model_limit", "length"), [(10, 128, 10), (None, 100, 100), (None, None, 512)])
def test_a_long_text_is_cut_and_keeps_its_end_marker(tokenizer, max_length, model_limit, length):
    bound = task(rows("single"), max_length=max_length)
    features = bound.encode({"text": "film " * 600, "label": "good"}, tokenizer, max_length=model_limit)
    assert (features.length, len(features.inputs["input_ids"]), features.truncated) == (length, length, True)
    assert features.inputs["input_ids"][-1] == tokenizer.sep_token_id


@pytest.mark.parametrize(("truncate", "own"), [("right", "left"), ("left", "right"), (None, "left"), (None, "right")])
def test_a_text_is_cut_on_the_side_that_is_asked_for(truncate, own):
    tokenizer = word_piece_tokenizer()
    tokenizer.truncation_side = own
    bound = task(rows("single"), max_length=5, truncate=truncate)
    features = bound.encode({"text": "the film was so good and the music bad", "label": "good"}, tokenizer)
    left = (truncate or own) == "left"
    kept = "the music bad" if left else "the film was"
    assert tokenizer.decode(features.inputs["input_ids"], skip_special_tokens=True) == kept
    assert features.counts == ({"cut_in_front": 1} if left else {})
    assert tokenizer.truncation_side == own  # another task's runs read with it too


def test_a_saved_tokenizer_cuts_as_the_task_did(tmp_path):
    model, tokenizer = tiny_bert()
    bound = task(rows("single"), truncate="left")
    bound.set_model(LoadedModel(model, tokenizer, "tiny", bound.head), None)
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).truncation_side == "left"
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["truncation_side"] == "left"


def test_more_than_the_model_reads_is_refused(tokenizer):
    with raises(RecipeError, "max_length 200"):
        task(rows("single"), max_length=200).encode(rows("single")[0], tokenizer, max_length=128)


# Loss, predictions, answers


@pytest.mark.parametrize("kind", LABELS)
def test_the_loss_is_that_of_transformers(load, tokenizer, kind):
    bound = task(rows(kind))
    loaded, batch = load(bound, torch.float32), make_batch(bound, kind, tokenizer)
    loaded.module.config.problem_type = {
        "single": "single_label_classification",
        "multi": "multi_label_classification",
        "regression": "regression",
    }[kind]
    total, weight = bound.loss(loaded.module, batch, Criterion())
    assert weight == 4
    variance = batch["labels"].var(correction=0) if kind == "regression" else 1
    torch.testing.assert_close(total / weight, loaded.module(**batch).loss / variance)


@pytest.mark.parametrize(
    ("given", "weights"),
    [("balanced", [4 / 3, 2 / 3, 4 / 3]), ({"mixed": 5}, [0.5, 0.5, 2.5])],  # of bad, good and mixed: 1, 2 and 1 rows
)
def test_class_weights_are_factors_of_the_training_loss_alone(load, tokenizer, given, weights):
    bound, plain = task(rows("single"), class_weights=given), task(rows("single"))
    model, batch = load(bound).module, make_batch(bound, "single", tokenizer)
    model.training = True  # itself, and not the dropout in it
    logits, weights = model(**model_inputs(batch)).logits, torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(logits, batch["labels"], weight=weights, reduction="sum")
    total, count = bound.loss(model, batch, Criterion())
    assert count == 4
    torch.testing.assert_close(total, expected)
    mixed = {**batch, "labels": torch.tensor([[0.5, 0.5, 0], [0, 0.3, 0.7], [1, 0, 0], [0, 1, 0]]).double()}
    expected = F.cross_entropy(logits, mixed["labels"], weight=weights, reduction="sum")  # as mixup has them
    torch.testing.assert_close(bound.loss(model, mixed, Criterion())[0], expected)
    model.training = False  # validation losses are plain
    torch.testing.assert_close(bound.loss(model, batch, Criterion()), plain.loss(model, batch, Criterion()))


def test_class_weights_of_other_labels_and_kinds_are_refused():
    with raises(DataError, "task.class_weights", "'goood'", "'good'"):
        task(rows("single"), class_weights={"goood": 2.0})
    for kind in ("multi", "regression"):
        with raises(DataError, "task.class_weights", kind):
            task(rows(kind), class_weights="balanced")


class Outputs(torch.nn.Module):
    """A module whose forward is a function."""

    def __init__(self, forward):
        super().__init__()
        self.forward = forward


@pytest.mark.parametrize("kind", LABELS)
def test_the_loss_of_a_bfloat16_model_is_taken_in_fp32(load, tokenizer, kind):
    bound = task(rows(kind))
    model, batch = load(bound, torch.bfloat16).module, make_batch(bound, kind, tokenizer)
    total, _ = bound.loss(model, batch, Criterion())
    in_double = Outputs(lambda **inputs: model(**inputs).logits.double())
    expected, _ = bound.loss(in_double, batch, Criterion())
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", LABELS)
def test_predictions_hold_what_evaluators_read_and_add_up_to_the_loss(load, tokenizer, kind):
    bound = task(rows(kind))
    loaded, batch = load(bound), make_batch(bound, kind, tokenizer)
    predictions = bound.predict(loaded.module, batch)
    with torch.no_grad():
        logits = loaded.module(**model_inputs(batch)).logits
        torch.testing.assert_close(
            sum(p["loss"] for p in predictions), bound.loss(loaded.module, batch, Criterion())[0].item()
        )
    assert all(bound.predicts <= p.keys() for p in predictions)
    if kind == "regression":
        assert [p["target"] for p in predictions] == LABELS[kind]
        assert [p["value"] for p in predictions] == logits[:, 0].tolist()
        return
    assert [p["label"] for p in predictions] == batch["labels"].long().tolist()
    scores = torch.tensor([p["scores"] for p in predictions])
    if kind == "single":
        assert [p["predicted"] for p in predictions] == logits.argmax(1).tolist()
        torch.testing.assert_close(scores, logits.softmax(1).float())
    else:
        assert [p["predicted"] for p in predictions] == (logits.sigmoid() > 0.5).long().tolist()
        torch.testing.assert_close(scores, logits.sigmoid().float())


@pytest.mark.parametrize("kind", LABELS)
def test_a_batch_answers_as_one_by_one_does(load, kind):
    bound = task(rows(kind))
    loaded = load(bound)
    examples = [{"text": text} for text in TEXTS]
    together = bound.infer(loaded, examples)
    alone = [bound.infer(loaded, [example])[0] for example in examples]
    for one, other in zip(together, alone, strict=True):
        if kind == "regression":
            assert one == {"value": pytest.approx(other["value"], rel=1e-9)}
        else:
            assert one == {**other, "scores": pytest.approx(other["scores"], rel=1e-9)}


def test_answers_have_names(load):
    bound = task(rows("single"))
    for answer in bound.infer(load(bound), [{"text": text} for text in TEXTS]):
        assert answer["label"] == max(answer["scores"], key=answer["scores"].get)
        assert sum(answer["scores"].values()) == pytest.approx(1)
    bound = task(rows("multi"))
    for answer in bound.infer(load(bound), [{"text": text} for text in TEXTS]):
        assert answer["labels"] == [name for name, p in answer["scores"].items() if p > 0.5]


def test_a_decoder_without_a_pad_token_of_its_own_classifies_the_last_token(gpt2_folder):
    """Right padding must not be what GPT-2 reads its answer from."""
    bound = task(rows("single"))
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(gpt2_folder, num_labels=3, dtype=torch.float64).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    batch = make_batch(bound, "single", tokenizer)
    together = [p["loss"] for p in bound.predict(model, batch)]
    for row, loss in zip(rows("single"), together, strict=True):
        alone = bound.collate([bound.encode(row, tokenizer)], tokenizer)
        assert bound.predict(model, alone)[0]["loss"] == pytest.approx(loss, rel=1e-9)


# What is refused


@pytest.mark.parametrize(
    ("columns", "options", "reason"),
    [
        (["body", "label"], {}, "task.text"),
        (["text", "lable"], {}, "'lable'"),
        (["text", "label"], {"pair": "other"}, "task.pair"),
        ([], {}, "columns: none"),
    ],
)
def test_missing_columns_are_named(columns, options, reason):
    with raises(DataError, reason):
        TextClassification(TextClassificationConfig(**options)).check_columns(columns)


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("single", {"label": "good"}, "`text` is missing"),
        ("single", {"text": 3, "label": "good"}, "`text` is 3"),
        ("single", {"text": " ", "label": "good"}, "`text` is empty"),
        ("single", {"text": "x"}, "label is missing"),
        ("single", {"text": "x", "label": ""}, "label is ''"),
        ("single", {"text": "x", "label": 0.5}, "0.5"),
        ("single", {"text": "x", "label": ["good"]}, "['good']"),
        ("single", {"text": "x", "label": "god"}, "'god'"),
        ("single", {"text": "x", "label": "1,762"}, "1.762"),
        ("multi", {"text": "x", "label": None}, "labels are missing"),
        ("multi", {"text": "x", "label": 3}, "labels are 3"),
        ("multi", {"text": "x", "label": ["film", None]}, "label is missing"),
        ("multi", {"text": "x", "label": "film;moosic"}, "'music'"),
        ("regression", {"text": "x", "label": "much"}, "'much'"),
        ("regression", {"text": "x", "label": "2,481"}, "2.481"),
        ("regression", {"text": "x", "label": "-1.002,5"}, "-1002.5"),
        ("regression", {"text": "x", "label": float("nan")}, "finite number"),
        ("regression", {"text": "x", "label": True}, "finite number"),
        ("regression", {"text": "x"}, "label is missing"),
    ],
)
def test_a_malformed_row_is_refused_with_its_reason(tokenizer, kind, row, reason):
    with raises(DataError, reason):
        task(rows(kind)).encode(row, tokenizer)
