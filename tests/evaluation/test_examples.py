"""Single examples: which changed most, and how they are shown."""

from types import SimpleNamespace

import numpy as np
import pytest
from partly import partly

from ftengine.api import Evaluator, ExampleScores, Task, View
from ftengine.evaluation.examples import most_changed, shortened, single_examples
from ftengine.evaluation.plan import EvalSet
from ftengine.evaluation.table import Predictions
from ftengine.text import redact_pieces

EMAIL = "Jane.Doe@example.org"


def scores(values, right=None):
    unknown = np.full(len(values), np.nan)
    return ExampleScores(np.array(values, dtype=float), unknown if right is None else np.array(right, dtype=float))


def test_most_single_examples_come_first_each_group_once_and_ties_nowhere():
    base, tuned = scores([0.5, 0.5, 0.5, 0.5, 0.5, np.nan]), scores([0.9, 0.9, 0.6, 0.5, 0.1, 0.9])
    groups = np.array([1, 1, 2, 3, 4, 5])
    improved, worse = most_changed(base, tuned, groups)
    assert [groups[i] for i in improved] == [1, 2]
    assert worse == [4]


def test_an_answer_that_became_wrong_has_got_worse_whatever_its_score():
    """The right label may gain, and another one gain more."""
    base, tuned = scores([0.34, 0.34, 0.4, 0.4], [1, 0, 0, 1]), scores([0.64, 0.44, 0.2, 0.3], [0, 1, 1, 0])
    assert most_changed(base, tuned, np.arange(4)) == ([2, 1], [0, 3])


def test_long_texts_are_cut_in_their_middle():
    pieces = shortened([("a" * 3000 + "END", False), ("answer", True)])
    assert sum(len(text) for text, _ in pieces) <= 640
    assert pieces[0][0].endswith("END")
    assert pieces[1] == ["answer", True]


def test_personal_data_is_masked_in_examples():
    """In the row's own text, as BERT's tokenizer decodes it (in lower case, with spaces), and in the answers."""
    decoded = [("[CLS] write to jane. doe @ example. org [SEP]", False), (EMAIL, True)]
    assert redact_pieces(decoded, [EMAIL]) == [("[CLS] write to j…rg [SEP]", False), ("J…rg", True)]
    item = changed_item({"text": f"Write to {EMAIL}"}, EMAIL, decoded)
    assert item["shown"] == [["Write to J…rg", False], ["J…rg", True]]
    assert item["tuned"] == item["base"] == {"completion": "Ask J…rg or 2…23", "p": 0.1235}
    assert (item["base_score"], item["tuned_score"], item["base_right"]) == (0, 1, True)


@pytest.mark.parametrize(
    ("row", "target", "shown"),
    [
        ({"text": "Goal!"}, "sport", [["Goal!", False], ["sport", True]]),
        ({"text": "Goal!", "label": "sport"}, "sport", [["Goal!", False], ["sport", True]]),
        ({"text": "Goal!"}, ["home", "sport"], [["Goal!", False], ["home, sport", True]]),
        ({"prompt": "2 + 2 =", "completion": "4"}, None, [["2 + 2 =", False], ["4", True]]),
        ({"text": "A story."}, None, [["A story.", False]]),
        ({}, "cat", [["decoded", False]]),
    ],
)
def test_an_example_is_shown_in_the_rows_own_words_where_it_has_some(row, target, shown):
    assert changed_item(row, target, [("decoded", False)])["shown"] == shown


class Rows(list):
    def where(self, row):
        return f"mail.jsonl:{row + 1}"

    def view(self, row, task):
        return task.view(self[row])


@partly
class Exact(Evaluator):
    """Says what it is told."""

    name = "exact"


def changed_item(row, target, decoded):
    """Return the one example that changed, of a task that says of its row what is given."""

    @partly
    class Told(Task):
        def view(self, row):
            return View(list(row.values()), target, classes=target is not None)

        def encode(self, example, processor, *, max_length=None):
            return example

        def decode_example(self, features, processor):
            return decoded

        def decode_prediction(self, prediction):
            return prediction

    task = Told()
    split = SimpleNamespace(rows=Rows([row]), task=task, processor=None, features=lambda number: task.encode(row, None))
    said = {"completion": [f"Ask {EMAIL} or 212-555-0123"], "p": [0.123456]}
    table = Predictions({"row": np.array([0]), "group": np.array([0]), **{k: np.array(v) for k, v in said.items()}})
    both = [{"exact": scores([value], [1])} for value in (0.0, 1.0)]
    (item,) = single_examples(EvalSet("test", split, [Exact()]), [table, table], both)["improved"]
    return item
