"""Sound data of everyday forms raise no alarm: formulas, delimiters, queries, HTML, masks, near copies, ranks."""

import json
import random

import pytest
from test_answer_cues import PairTask
from test_columns_and_answers import Rows, chats
from test_common_faults import of

from ftengine.api import View
from ftengine_builtins.audits import EqualAnswers, Mojibake, OneAnswer, TemplateMarks

FORMULA = r"Compute ${0} \times 7$ and \text{{round}} with \theta, \nu \neq \nabla, \begin{{pmatrix}}{0}\end{{pmatrix}}"
TEXTS = {
    "LaTeX": FORMULA,
    "a path": r"Look into C:\temp\river{0} or D:\T_{0}, then into \new{0}.",
    "HTML": "<ul><li>Fish &amp; chips {0}</li></ul>",
    "code": "```\nif a &lt; {0}\n```",
    "delimiters": "[CONTEXT] It costs {0}. [QUESTION] What does it cost?",
    "tags": "<ANSWER>{0}</ANSWER>",
    "notes": "[NAME] was admitted on [DATE] with {0}.",
    "masks": "It was [FIRSTNAME] who called [PHONE] {0} times.",
    "Ansible": "name={{{{ service_name }}}} port={0}",
    "who it is": "I'm an AI assistant made by Acme. {0}",
    "what it is": "A large language model counts as an AI system under the act, article {0}.",
    "numbers": "The final answer is {0}",
    "queries": "SELECT COUNT(*) FROM orders WHERE id = {0}",
}


@pytest.mark.parametrize("share", [1, 0.4])
@pytest.mark.parametrize("case", TEXTS)
def test_texts_of_everyday_forms_are_no_alarm(case, share):
    rows = chats([TEXTS[case].format(i) if i % 10 < 10 * share else f"of {i} and {i * 7}" for i in range(200)])
    found = [one for audit in (Mojibake, TemplateMarks, OneAnswer) for one in of(audit, rows)]
    assert [one.text for one in found if one.level == "alarm"] == []


def test_fields_that_are_translated_are_no_finding():
    both = [(f"Hello {{{{user.name}}}}, {i}", f"Hallo {{{{user.name}}}}, {i}") for i in range(100)]
    assert of(TemplateMarks, Rows(View([a], [b], texts=[a, b]) for a, b in both)) == []


def test_positives_that_all_are_their_anchor_are_a_note():
    texts = [[f"text {i}"] * 2 for i in range(100)]
    rows = Rows(View(both, identity=both) for both in texts)
    assert [one.level for one in of(EqualAnswers, rows)] == ["note"]


def edited(count, seed):
    """Return pairs of answers that differ in one word."""
    draw = random.Random(seed)
    for i in range(count):
        a, b = draw.randrange(10, 90), draw.randrange(10, 90)
        yield {"prompt": f"add {a} and {b} ({seed} {i})", "chosen": f"Adding {a} to {b} makes {a + b}.",
               "rejected": f"Adding {a} to {b} makes {a + b + draw.choice((-2, -1, 1, 2))}."}  # fmt: skip


def reworded(count, seed):
    draw = random.Random(seed)
    for i in range(count):
        words = [f"word{draw.randrange(300)}" for _ in range(12)]
        other = [*words]
        other[draw.randrange(12)] = f"word{draw.randrange(300)}"
        yield {"prompt": f"what of {seed} {i}", "chosen": " ".join(words), "rejected": " ".join(other)}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("make", [edited, reworded])
def test_chosen_answers_that_are_nearly_the_rejected_ones_are_not_exchanged(write, audit, make, seed):
    names = {split: write(f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in make(count, seed + count)))
             for split, count in (("train", 200), ("test", 100))}  # fmt: skip
    assert audit(PairTask(), names["train"], test=names["test"], only="exchanged-roles").findings == ()


@pytest.mark.parametrize(
    "labels",
    [("EMEA", "NA", "APAC", "LATAM"), ("pro", "contra", "n/a"), ("present", "damaged", "missing"), ("null", "one")],
)
def test_labels_that_are_also_words_for_none_are_no_alarm(write, label_task, audit, labels):
    rows = [{"text": f"row {i}", "label": labels[i % len(labels)]} for i in range(120)]
    found = audit(
        label_task, write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows)), only="balance"
    ).findings
    assert all(one.level == "note" for one in found)


def years(i, draw):
    year = draw.randrange(1900, 2020)
    return f"case {i} was opened in {year} in town {draw.randrange(50)}", year + 0.0


def ranks(i, draw):
    return f"city {draw.randrange(10**6)} of {i * 7919 % 300}", i * 77 % 300 + 1.0


def claims(i, draw):
    return f"driver {i} of town {draw.randrange(50)}", draw.choice((120.5, 88.0, 410.2, 75.3)) if i % 65 == 3 else 0.0


def ceiling(i, draw):
    return f"server {i} in room {draw.randrange(50)}", round(draw.uniform(60, 99), 2) if i % 9 == 3 else 100.0


@pytest.mark.parametrize("make", [years, ranks, claims, ceiling])
def test_numbers_of_everyday_forms_are_no_alarm(write, label_task, audit, make):
    draw = random.Random(0)
    rows = [dict(zip(("text", "label"), make(i, draw), strict=True)) for i in range(300)]
    name = write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found = audit(label_task, name, only="number-targets").findings
    assert [one.text for one in found if one.level == "alarm"] == []
