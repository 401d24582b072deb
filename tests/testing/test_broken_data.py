"""Augmenters, tasks, readers, audits and rules: a sound one passes, a broken one fails the check that is meant."""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from broken import failed, variant
from headlines import Headlines
from hinge import HingePreference

from ftengine.api import Audit, Augmenter, FileReader, Finding, Recognised, Row, Rule, Task, TextAugmenter, View
from ftengine.data import text_lines
from ftengine.errors import DataError
from ftengine.model import Criterion
from ftengine.testing import check_results, check_task, fixture
from ftengine_builtins.tasks import GRPO
from ftengine_builtins.tasks.causal_lm import CausalLM
from ftengine_builtins.tasks.text_classification import TextClassification

pytestmark = pytest.mark.slow


class Small(TextAugmenter):
    """Write texts in small letters."""

    name = "small"

    def change(self, text, rng):
        return text.lower()


class Growing(Small):
    """Writes more behind each text than behind the one before."""

    seen = 0

    def change(self, text, rng):
        self.seen += 1
        return text + " x" * self.seen


class Remembering(Small):
    """Changes a text otherwise when it comes again."""

    def __init__(self, config=None):
        super().__init__(config)
        self.seen = set()

    def change(self, text, rng):
        again = text in self.seen
        self.seen.add(text)
        return text.lower() if not again else text.upper()


class Relabelled(Augmenter):
    """Gives every row of a label another one, and a label to rows without one."""

    name = "relabelled"

    def augment(self, row, task, rng):
        yield {**row, "label": "sports", "completion": "Nothing."}


class Losing(Small):
    """Forgets to return what it made of a text."""

    def change(self, text, rng):
        text.upper()


class Unpicklable(Small):
    """Keeps a function."""

    def __init__(self, config=None):
        super().__init__(config)
        self.function = lambda text: text.lower()

    def change(self, text, rng):
        return self.function(text)


class InPlace(Augmenter):
    """Changes the row that it is given."""

    name = "in-place"

    def augment(self, row, task, rng):
        row["seen"] = True
        yield row


class Emptying(Augmenter):
    """Yields rows that no task can encode."""

    name = "emptying"

    def augment(self, row, task, rng):
        target = {key: row[key] for key in ("label", "tags", "completion") if key in row}
        yield target


def test_a_sound_augmenter_passes():
    assert failed(Small) == {}


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (Growing, "no_state_between_examples"),
        (Remembering, "no_state_between_examples"),
        (Relabelled, "labels_stay"),
        (Losing, "new_examples_can_be_read"),
        (variant(Small, change=lambda self, text, rng: text), "something_changes"),
        (Unpicklable, "it_can_be_pickled"),
        (InPlace, "given_examples_stay"),
        (variant(Small, change=lambda self, text, rng: text.lower() + str(random.random())), "same_seed_same_examples"),
        (Emptying, "new_examples_can_be_encoded"),
    ],
)
def test_a_broken_augmenter_fails_the_check_that_is_meant(cls, check):
    assert check in failed(cls)


# Tasks.


class Labelled(TextClassification):
    """Give a text a label."""

    name = "labelled"


class Averaging(Labelled):
    """Divides its loss itself."""

    def loss(self, model, batch, criterion):
        loss, weight = super().loss(model, batch, criterion)
        return loss / weight, 1


class Dimensional(Labelled):
    """Leaves a dimension in its loss, which a run refuses."""

    def loss(self, model, batch, criterion):
        loss, weight = super().loss(model, batch, criterion)
        return loss[None], weight


class Sorted(Labelled):
    """Sorts its predictions."""

    def predict(self, model, batch):
        return sorted(super().predict(model, batch), key=lambda one: one["loss"])


class Padded(Labelled):
    """Lets padding have an influence."""

    def collate(self, features, processor):
        batch = super().collate(features, processor)
        return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}


class Narrow(Labelled):
    """Takes outputs to numpy in the dtype that they have."""

    def predict(self, model, batch):
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        scores = model(**inputs).logits.numpy()
        return [{**one, "scores": row.tolist()} for one, row in zip(super().predict(model, batch), scores, strict=True)]


class Certain(Labelled):
    """Says how certain it is as a share."""

    @classmethod
    def recognise(cls, columns, rows):
        return Recognised(0.9)


class Renaming(Labelled):
    """Says which column becomes which the wrong way round."""

    @classmethod
    def recognise(cls, columns, rows):
        return Recognised(1, columns={"text": "sentence"})


class Untrained(Labelled):
    """Forgets what is trained on."""

    def decode_example(self, features, processor):
        return [(processor.decode(features.inputs["input_ids"]), False)]


class Hidden(Labelled):
    """Says more than a tensor of a batch without labels."""

    def raw_outputs(self, model, batch):
        outputs = super().raw_outputs(model, batch)
        return outputs if "labels" in batch else (outputs, None)


class Strict(Labelled):
    """Raises what Python raises for a row of another shape."""

    def view(self, row):
        return View([row["text"]], row["label"], True)

    def encode(self, example, processor, *, max_length=None):
        assert set(example) == {"text", "label"}
        return super().encode(example, processor, max_length=max_length)


class Restless(GRPO):
    """Draws by a state of its own, so that a resumed run would learn from other answers."""

    name = "restless"

    def draw(self, request):
        return super().draw(replace(request, step=int(torch.randint(2**30, ()))))


class Unsummed(GRPO):
    """Declares a figure that it does not sum."""

    name = "unsummed"

    def learn(self, model, batch):
        loss, weight, _, tokens = super().learn(model, batch)
        return loss, weight, [], tokens


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (Restless, "drawn_answers_can_be_learnt_from"),
        (Unsummed, "drawn_answers_can_be_learnt_from"),
        (Averaging, "the_criterion_is_what_is_summed"),
        (Dimensional, "the_criterion_is_what_is_summed"),
        (
            variant(
                Labelled, loss=lambda self, model, batch, criterion: Labelled.loss(self, model, batch, Criterion())
            ),
            "another_criterion_changes_the_loss",
        ),
        (
            variant(Labelled, predict=lambda self, model, batch: Labelled.predict(self, model, batch)[:-1]),
            "predictions_have_their_keys",
        ),
        (Sorted, "predictions_do_not_depend_on_the_batch"),
        (Padded, "predictions_do_not_depend_on_the_batch"),
        (Padded, "losses_add_up_over_batches"),
        (Narrow, "it_computes_in_bfloat16"),
        (Certain, "data_is_recognised"),
        (Renaming, "data_is_recognised"),
        (
            variant(
                Labelled, decode_example=lambda self, features, processor: [processor.decode(features["input_ids"])]
            ),
            "examples_are_decoded_into_pieces",
        ),
        (Untrained, "examples_are_decoded_into_pieces"),
        (
            variant(Labelled, decode_prediction=lambda self, prediction: {"scores": np.array(prediction["scores"])}),
            "predictions_are_decoded_as_json",
        ),
        (Hidden, "outputs_of_a_probe_are_logits"),
        (
            variant(Labelled, calibrate=lambda self, rows: {"temperature": np.float32(len(rows["label"]))}),
            "it_answers_by_what_it_calibrated",
        ),
        (variant(Labelled, with_inputs=lambda self, row, inputs: {**row, "text": "?"}), "inputs_can_be_put_back"),
        (Strict, "other_rows_are_data_errors"),
    ],
)
def test_a_broken_task_fails_the_check_that_is_meant(cls, check):
    assert check in failed(cls)


class Lowers(TextClassification):
    """Write the text in small letters into its row, which is no change the second time."""

    name = "lowers"

    def encode(self, example, processor, *, max_length=None):
        example["text"] = example["text"].lower()
        return super().encode(example, processor, max_length=max_length)


class Strips(CausalLM):
    """Write into the messages of a row."""

    name = "strips"

    def encode(self, example, processor, *, max_length=None, part=None):
        for message in example.get("messages", ()):
            message["content"] = message["content"].rstrip("?.!")
        return super().encode(example, processor, max_length=max_length, part=part)


class Learns(TextClassification):
    """Write into rows while labels are learnt."""

    name = "learns"

    def learn_labels(self, splits):
        for row in splits["train"]:
            row["text"] = row["text"].strip(".")
        return super().learn_labels(splits)


@pytest.mark.parametrize("cls", [Lowers, Strips, Learns])
def test_a_task_that_writes_into_its_rows_fails(cls):
    assert "encoding_is_pure_and_whole" in failed(cls)


class Forgetful(Task):
    """Returns a dict for features, and keeps to itself what it learns."""

    name = "forgetful"
    head = "sequence-classification"
    modality = "text"

    def learn_labels(self, splits):
        self.predicts = frozenset({"label"})

    def view(self, row):
        return View([row["text"]], row["label"])

    def with_inputs(self, row, inputs):
        return {**row, "label": "?"}

    def encode(self, example, processor, *, max_length=None):
        return {"length": 1, "truncated": False}

    def collate(self, features, processor):
        return {"x": torch.zeros(1)}


def test_a_task_that_learns_in_secret_fails():
    with pytest.raises(AssertionError) as error:
        check_task(Forgetful, None, fixture("sequence-classification").rows)
    for name in (
        "encoding_is_pure_and_whole",
        "labels_are_all_that_is_learnt",
        "batches_hold_every_example",
        "inputs_can_be_put_back",
    ):
        assert name in str(error.value)


def test_two_sequences_of_a_row_are_no_fault():
    results = check_results(HingePreference)
    assert [(one.check, one.reason) for one in results if one.outcome == "failed"] == []
    passed = {one.check for one in results if one.outcome == "passed"}
    assert {"batches_hold_every_example", "inputs_can_be_put_back", "losses_add_up_over_batches"} <= passed


class LooksAtWeights(HingePreference):
    """Prefer one answer to another, and look at the model's weights."""

    def set_model(self, loaded, strategy):
        self.norm = next(loaded.module.parameters()).norm().item()


def test_a_task_that_reads_weights_without_values_fails():
    assert "a_model_without_values_can_be_seen" in failed(LooksAtWeights)


# Readers.


class Lines(FileReader):
    """Lines of text."""

    name = "lines"
    suffixes = (".txt",)

    def read(self, source):
        for number, line, _ in text_lines(source):
            if line.strip():
                yield Row(number, {"text": line.strip().encode(errors="replace").decode()})


class Decoding(Lines):
    """Fails where a file is no UTF-8."""

    def read(self, source):
        with open(source, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield Row(number, {"text": line.strip()})


class Numbering(Lines):
    """Counts on from file to file."""

    numbers = itertools.count(1)

    def read(self, source):
        for row in super().read(source):
            yield Row(next(self.numbers), row.values)


class Nowhere(Lines):
    """Says of each row that it is in the first line."""

    def read(self, source):
        for row in super().read(source):
            yield Row(1, row.values)


class Mappings(Lines):
    """Yields mappings."""

    def read(self, source):
        for row in super().read(source):
            yield row.values


class Writing(Lines):
    """Writes an index beside the file."""

    def read(self, source):
        with open(f"{source}.index", "w") as file:
            file.write("0")
        yield from super().read(source)


class Tuples(Lines):
    """Yields rows without columns."""

    def read(self, source):
        for row in super().read(source):
            yield Row(row.place, list(row.values.values()))


class Batching(Lines):
    """Reads batches of a hundred, and forgets the last."""

    def read(self, source):
        rows = list(super().read(source))
        yield from rows[: len(rows) // 100 * 100] if len(rows) > 100 else rows


class Lenient(FileReader):
    """Passes over lines that are no JSON."""

    name = "lenient"
    suffixes = (".jsonl",)

    def read(self, source):
        for number, line, _ in text_lines(source):
            with suppress(ValueError, AttributeError):
                yield Row(number, dict(json.loads(line).items()))


@pytest.mark.parametrize("suffix", [".jsonl", ".own"])
def test_a_reader_that_passes_over_what_it_cannot_read_fails(monkeypatch, suffix):
    monkeypatch.setattr(Lenient, "suffixes", (suffix,))
    assert set(failed(Lenient)) == {"lines_that_cannot_be_read_are_broken_rows"}


@pytest.mark.parametrize("suffix", [".txt", ".log"], ids=["shipped", "own"])
@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (Batching, "long_files_lose_no_row"),
        (Decoding, "damaged_files_are_broken_rows"),
        (Numbering, "a_second_reading_is_the_same"),
        (Nowhere, "rows_have_places_and_json_values"),
        (Mappings, "rows_have_places_and_json_values"),
        (Tuples, "rows_have_places_and_json_values"),
        (Writing, "nothing_is_written"),
    ],
)
def test_a_broken_reader_fails_the_check_that_is_meant(cls, check, suffix):
    sound, broken = (type(one.__name__, (one,), {"suffixes": (suffix,), "__doc__": "Read."}) for one in (Lines, cls))
    assert failed(sound) == {}
    assert check in failed(broken)


# Audits and rules.


class Counting(Audit):
    """Counts rows."""

    name = "counting"

    def examine(self, data):
        for rows in data.splits.values():
            yield Finding(kind="data", level="note", text=f"{len(rows)} rows.", places=(rows.where(0),))


class Elsewhere(Counting):
    """Names a place that is none."""

    def examine(self, data):
        yield Finding(kind="data", level="note", text="Something is odd.", places=("line 3",))


class Restless(Counting):
    """Finds something else each time."""

    calls = itertools.count()

    def examine(self, data):
        yield Finding(kind="data", level="note", text=f"Looked {next(self.calls)} times.")


class Texts(Counting):
    """Yields texts."""

    def examine(self, data):
        yield "Something is odd."


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (Elsewhere, "places_are_of_the_data"),
        (Restless, "the_same_data_has_the_same_findings"),
        (Texts, "what_it_yields_can_be_shown"),
        (variant(Counting, examine=lambda *_: None), "what_it_yields_can_be_shown"),
    ],
)
def test_a_broken_audit_fails_the_check_that_is_meant(cls, check):
    assert failed(Counting) == {}
    assert check in failed(cls)


class LongEnough(Rule):
    """Wants many steps."""

    name = "long-enough"

    def judge(self, run):
        yield Finding(kind="over-fitting", level="note", text=f"{run.training.steps} steps.")


class OpensFiles(LongEnough):
    """Goes by what lies in the folder."""

    def judge(self, run):
        yield Finding(kind="data", level="note", text=f"The folder {run.path} is there.")


class SaysSo(OpensFiles):
    """Goes by it openly, and names no command."""

    reads_later_files = True

    def view_command(self, run):
        return None


class Ends(LongEnough):
    """Ends the process as if all was well."""

    def judge(self, run):
        sys.exit(0)


class Vanishes(LongEnough):
    """Ends it so that nothing is told."""

    def judge(self, run):
        os._exit(0)


class Hasty(LongEnough):
    """Takes held-out figures for granted."""

    def judge(self, run):
        value = run.evaluation.tuned[run.headline_metric].value
        yield Finding(kind="quality", level="good", text=f"It reaches {value:.2f}.")


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (OpensFiles, "only_records_are_read"),
        (Ends, "what_it_yields_can_be_shown"),
        (Vanishes, "what_it_yields_can_be_shown"),
        (Hasty, "what_it_yields_can_be_shown"),
    ],
)
def test_a_broken_rule_fails_the_check_that_is_meant(cls, check):
    assert failed(LongEnough) == {}
    assert check in failed(cls)


def test_a_rule_that_says_so_may_read_further_files():
    assert failed(SaysSo).keys() == {"its_command_is_text"}


def test_a_reason_why_no_rows_suit_a_task_is_shown_once():
    class Articles(Headlines):
        name = "articles"

        def _text(self, row, column):
            raise DataError(f"column 'article' must hold text, not {row.get('article')!r}.")

    [result] = check_results(Articles, only={"rows_suit_it"})
    assert (result.outcome, result.reason.count("'article'")) == ("does not apply", 1)
