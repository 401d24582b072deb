"""Single examples: who got right what the other got wrong, and where most changed."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest

from ftengine.api import Judgement, redact_pieces
from ftengine.evaluation.examination import Outcome
from ftengine.evaluation.examples import examples, shortened
from ftengine.evaluation.judgements import Judgements, Spool, judging, mcnemar, most_changed


def judgements(scores, right=None):
    result = Judgements.blank(len(scores))
    for member, score in enumerate(scores):
        if score is not None:
            result.put(member, Judgement(score, None if right is None else right[member]))
    return result


def test_mcnemar_counts_the_four_cells_and_tests_the_two_that_differ():
    base = judgements([1.0] * 10, [True] * 3 + [True] * 1 + [False] * 5 + [False] * 1)
    tuned = judgements([1.0] * 10, [True] * 3 + [False] * 1 + [True] * 5 + [False] * 1)
    found = mcnemar(base, tuned, None)
    assert found.pop("p") == pytest.approx(binomtest(1, 6).pvalue)
    assert found == {"both": 3, "only_base": 1, "only_tuned": 5, "neither": 1}


def test_duplicates_count_once_in_mcnemar():
    base, tuned = judgements([0.0] * 6, [False] * 6), judgements([1.0] * 6, [True] * 6)
    groups = np.array([7, 7, 7, 7, 9, 9], dtype=np.uint64)
    assert mcnemar(base, tuned, groups)["only_tuned"] == 2


def test_scores_alone_are_not_right_or_wrong():
    assert mcnemar(judgements([0.1, 0.2]), judgements([0.3, 0.1]), None) is None


def test_most_changed_examples_come_first_each_group_once_and_ties_nowhere():
    base = judgements([0.5, 0.5, 0.5, 0.5, 0.5, None])
    tuned = judgements([0.9, 0.9, 0.6, 0.5, 0.1, 0.9])
    groups = np.array([1, 1, 2, 3, 4, 5], dtype=np.uint64)
    improved, worse = most_changed(base, tuned, groups)
    assert [groups[member] for member in improved] == [1, 2]
    assert worse == [4]
    assert most_changed(base, tuned, groups, count=1) == ([improved[0]], [4])


def test_a_little_change_of_an_answer_that_stays_right_or_wrong_is_no_change():
    before, after = [0.21, 0.21, 0.49, 0.90], [0.24, 0.19, 0.51, 0.80]
    base = judgements(before, [False, False, False, True])
    tuned = judgements(after, [False, False, True, True])
    assert most_changed(base, tuned, None) == ([2], [3])
    # Where nothing is right or wrong, nobody knows the scale.
    assert most_changed(judgements(before), judgements(after), None) == ([0, 2], [3, 1])


def test_the_evaluator_that_says_right_or_wrong_is_preferred():
    loss, exact = judgements([0.1, 0.2]), judgements([1.0, None], [True, None])
    assert judging({"loss": loss, "exact": exact}, {"loss": loss, "exact": exact}) == "exact"
    assert judging({"loss": loss}, {"loss": loss}) == "loss"
    assert judging({}, {}) is None


def test_another_process_adds_its_judgements():
    mine, other = judgements([0.5, None], [True, None]), judgements([None, 0.25], [None, False])
    mine.merge(other)
    assert mine.scores.tolist() == [0.5, 0.25]
    assert mine.right.tolist() == [1, 0]


def test_answers_come_back_from_disk_in_any_order():
    spool = Spool(3)
    spool.put(2, {"completion": "ü\n\ud800", "p": np.float32(0.123456)})
    spool.put(0, {"label": "a"})
    assert spool.get(0) == {"label": "a"}
    assert spool.get(2)["p"] == 0.1235
    assert spool.get(1) is None


def test_long_texts_are_cut_in_their_middle():
    pieces = shortened([("a" * 3000 + "END", False), ("answer", True)])
    assert sum(len(text) for text, _ in pieces) <= 640
    assert pieces[0][0].endswith("END")
    assert pieces[1] == ["answer", True]


class Rows(list):
    def where(self, row):
        return f"mail.jsonl:{row + 1}"


def test_personal_data_is_masked_in_examples():
    """In the row's own text, as BERT's tokenizer decodes it (in lower case, with spaces), and in the answers."""
    email = "Jane.Doe@example.org"
    decoded = [("[CLS] write to jane. doe @ example. org [SEP]", False), (email, True)]
    assert redact_pieces(decoded, [email]) == [("[CLS] write to j…rg [SEP]", False), ("J…rg", True)]
    item = changed_item({"text": f"Write to {email}"}, email, decoded)
    assert item["shown"] == [["Write to J…rg", False], ["J…rg", True]]
    assert item["tuned"] == {"completion": "Ask J…rg or 2…23", "scores": {"J…rg": 0.5}}
    assert item["base"] == item["tuned"]


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


def changed_item(row, target, decoded):
    """Return the one example that changed, of a task that says of its row what is given."""
    email = "Jane.Doe@example.org"
    task = SimpleNamespace(
        texts=lambda row: list(row.values()),
        target=lambda row: target,
        encode=lambda row, processor, max_length: row,
        show=lambda row, processor: decoded,
    )
    split = SimpleNamespace(
        rows=Rows([row]),
        index=np.array([0]),
        groups=None,
        task=task,
        processor=None,
        max_length=9,
    )
    spool = Spool(1)
    spool.put(0, {"completion": f"Ask {email} or 212-555-0123", "scores": {email: 0.5}})
    outcomes = [
        Outcome(judgements={"exact": judgements([score], [True])}, spools={"all": spool}, judged_in={"exact": "all"})
        for score in (0.0, 1.0)
    ]
    (item,) = examples(SimpleNamespace(split=split), *outcomes)["improved"]
    return item
