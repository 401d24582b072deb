"""The audit counts duplicates, leaks and skips, and says in words what a reader must know."""

from __future__ import annotations

import json

import pytest

from ftengine.data.personal import find_personal, mask, mask_json, mask_pieces
from ftengine.data.split import make_splits
from ftengine.run.recipe import DataSection


def texts(names) -> str:
    return "".join(json.dumps({"text": name}) + "\n" for name in names)


def test_clean_data_gives_no_warning(write, text_task):
    source = write("a.jsonl", texts(f"text {i}" for i in range(50)))
    audit = make_splits(DataSection(train=source, validation=0.2, test=0.1), text_task, 0).audit
    assert audit["warnings"] == audit["leaks"] == []
    none = {"near_duplicates": 0, "skipped": {"count": 0, "first": []}}
    assert audit["splits"] == {
        "train": {"source": "a.jsonl", "rows": 35, "distinct": 35, "duplicates": 0, **none},
        "validation": {"source": "a.jsonl", "rows": 10, "distinct": 10, "duplicates": 0, **none},
        "test": {"source": "a.jsonl", "rows": 5, "distinct": 5, "duplicates": 0, **none},
    }
    assert json.loads(json.dumps(audit)) == audit


def test_duplicates_are_counted_and_told_once_for_their_file(write, text_task):
    audit = make_splits(DataSection(train=write("a.jsonl", texts("aab")), validation=None), text_task, 0).audit
    assert audit["splits"]["train"]["distinct"] == 2
    assert audit["splits"]["train"]["duplicates"] == 1
    assert audit["warnings"] == ["a.jsonl: 2 of 3 examples are distinct."]
    names = [f"text {i % 10}" for i in range(100)]
    audit = make_splits(DataSection(train=write("b.jsonl", texts(names)), validation=0.1), text_task, 0).audit
    assert audit["warnings"] == [
        "b.jsonl: only 10 of 100 examples are distinct; duplicates stay on one side of the split."
    ]


def test_leaks_between_files_are_counted_with_their_places(write, text_task):
    section = DataSection(
        train=write("a.jsonl", texts("xaybz")),
        validation=write("b.jsonl", texts("pbaqb")),
        test=write("c.jsonl", texts("rq")),
        leaks="warn",
    )
    audit = make_splits(section, text_task, 0).audit
    assert audit["leaks"] == [
        {
            "between": ["train", "validation"],
            "count": 3,
            "near": 0,
            "dropped": 0,
            "places": ["a.jsonl:4 = b.jsonl:2", "a.jsonl:2 = b.jsonl:3", "a.jsonl:4 = b.jsonl:5"],
        },
        {
            "between": ["validation", "test"],
            "count": 1,
            "near": 0,
            "dropped": 0,
            "places": ["b.jsonl:4 = c.jsonl:2"],
        },
    ]
    assert audit["warnings"][-2:] == [
        "3 of 5 validation examples are also in train (e.g. a.jsonl:4 = b.jsonl:2); "
        "figures on them say nothing about new data.",
        "1 of 2 test examples are also in validation (e.g. b.jsonl:4 = c.jsonl:2).",
    ]


def test_at_most_five_places_of_a_leak_are_shown(write, text_task):
    names = texts(f"text {i}" for i in range(30))
    section = DataSection(train=write("a.jsonl", names), validation=write("b.jsonl", names), leaks="warn")
    [leak] = make_splits(section, text_task, 0).audit["leaks"]
    assert (leak["count"], len(leak["places"])) == (30, 5)


def test_skipped_rows_are_told_once_for_their_file(write, text_task):
    source = write("a.jsonl", texts(f"text {i}" for i in range(20)) + "oops\n{\n")
    audit = make_splits(DataSection(train=source, on_error="skip"), text_task, 0).audit
    assert audit["splits"]["train"]["skipped"]["count"] == 2
    assert audit["splits"]["train"]["skipped"]["first"][0].startswith("a.jsonl:21: not valid JSON")
    assert audit["splits"]["validation"]["skipped"] == {"count": 0, "first": []}
    [warning] = audit["warnings"]
    assert warning.startswith("a.jsonl: 2 malformed rows were left out, the first: a.jsonl:21: not valid JSON")


def test_a_split_of_quite_another_size_than_asked_for_is_told(write, text_task):
    audit = make_splits(DataSection(train=write("a.jsonl", texts("a" * 60 + "b" * 40))), text_task, 0).audit
    assert "a.jsonl: validation has 40 of 100 examples (40%) where 10% was asked for" in audit["warnings"][-1]


def test_few_rows_are_not_blamed_for_being_few(write, text_task):
    assert make_splits(DataSection(train=write("a.jsonl", texts("abc"))), text_task, 0).audit["warnings"] == []


def labelled(write, name, rows) -> str:
    return write(name, "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))


def test_equal_texts_with_two_labels_are_contradictions(write, label_task):
    rows = [("a", "x"), ("b", "x"), ("a", "y"), ("c", "y"), ("a", "x"), ("b", "x")]
    audit = make_splits(DataSection(train=labelled(write, "a.jsonl", rows), validation=None), label_task, 0).audit
    assert audit["contradictions"] == {"texts": 1, "rows": 3, "places": ["a.jsonl:1 ≠ a.jsonl:3"]}
    assert "1 example occurs with more than one label (3 rows, e.g. a.jsonl:1 ≠ a.jsonl:3)." in audit["warnings"]


def test_contradictions_are_found_across_files_and_not_made_of_missing_labels(write, label_task):
    section = DataSection(
        train=labelled(write, "a.jsonl", [("a", "x"), ("b", None), ("c", "x"), ("d", "y")]),
        validation=labelled(write, "b.jsonl", [("a", "y"), ("b", "x")]),
        leaks="warn",
    )
    found = make_splits(section, label_task, 0).audit["contradictions"]
    assert found == {"texts": 1, "rows": 2, "places": ["a.jsonl:1 ≠ b.jsonl:1"]}


def test_a_task_without_targets_has_no_contradictions_and_no_labels(write, text_task):
    audit = make_splits(DataSection(train=write("a.jsonl", texts("aab")), validation=None), text_task, 0).audit
    assert audit["contradictions"] is None
    assert audit["labels"] == {}


def test_the_same_words_with_two_labels_are_contradictions(write, label_task):
    rows = [("It is  good.", "x"), ("it is good", "y"), ("Bad\n", "x"), ("bad!", "x"), ("3 + 4", "x"), ("3 - 4", "y")]
    audit = make_splits(DataSection(train=labelled(write, "a.jsonl", rows), validation=None), label_task, 0).audit
    assert audit["contradictions"] == {"texts": 1, "rows": 2, "places": ["a.jsonl:1 ≠ a.jsonl:2"]}


def test_tags_of_words_that_are_written_otherwise_are_no_contradiction(write, label_task):
    rows = [("I eat an apple .", ["O", "O", "O", "O", "O"]), ("I eat an Apple", ["O", "O", "O", "B"])]
    audit = make_splits(DataSection(train=labelled(write, "a.jsonl", rows), validation=None), label_task, 0).audit
    assert audit["contradictions"]["texts"] == 0


def test_labels_that_differ_in_case_or_white_space_only_are_told(write, label_task):
    train = labelled(write, "a.jsonl", [(f"t{i}", ["new  car", "bus", "New car"][i % 3]) for i in range(60)])
    audit = make_splits(DataSection(train=train, validation=None), label_task, 0).audit
    assert audit["warnings"] == [
        "labels 'New car' (20) and 'new  car' (20) differ in case or white space only, and count as 2; are they one?"
    ]


def test_rare_and_missing_labels_are_told(write, label_task):
    train = [(f"x {i}", "often") for i in range(30)] + [(f"y {i}", "seldom") for i in range(3)] + [("z", "once")]
    section = DataSection(
        train=labelled(write, "a.jsonl", train),
        validation=labelled(write, "b.jsonl", [("p", "often"), ("q", "seldom")]),
    )
    audit = make_splits(section, label_task, 0).audit
    assert audit["labels"]["train"] == {
        "labels": 3,
        "counts": {"often": 30, "seldom": 3, "once": 1},
        "rarest": ["once", 1],
        "missing": [],
    }
    assert audit["labels"]["validation"]["missing"] == ["once"]
    assert audit["warnings"] == [
        "train: 2 of 3 labels occur fewer than 10 times, the rarest, 'once', once; little can be learnt of them.",
        "validation: no example of label 'once'; figures say nothing about it.",
    ]


def test_lists_of_labels_are_counted_each_and_numbers_are_none(write, label_task):
    several = labelled(write, "a.jsonl", [("a", ["x", "y"]), ("b", ["x"]), ("c", [])])
    audit = make_splits(DataSection(train=several, validation=None), label_task, 0).audit
    assert audit["labels"]["train"]["counts"] == {"x": 2, "y": 1}
    numbers = labelled(write, "b.jsonl", [("a", 1.5), ("b", 2.25)])
    assert make_splits(DataSection(train=numbers, validation=None), label_task, 0).audit["labels"] == {}


def test_what_looks_wrong_is_counted_with_its_place(write, text_task):
    rows = [f"plain sentence number {i} of an ordinary length" for i in range(60)]
    rows += ["  ", "=" * 40, "no no no no no no"]
    rows += ["caf\u00c3\u00a9", "a\ufffdb", "bell\x07", "p\u0430ypal", "x" * 4000, "y"]
    audit = make_splits(DataSection(train=write("a.jsonl", texts(rows)), validation=None), text_task, 0).audit
    found = {kind: (entry["count"], entry["places"]) for kind, entry in audit["oddities"]["train"].items()}
    assert found == {
        "empty": (1, ["a.jsonl:61"]),
        "repeated": (3, ["a.jsonl:62", "a.jsonl:63", "a.jsonl:68"]),
        "mojibake": (1, ["a.jsonl:64"]),
        "replacement": (1, ["a.jsonl:65"]),
        "control": (1, ["a.jsonl:66"]),
        "scripts": (1, ["a.jsonl:67"]),
        "short": (4, ["a.jsonl:64", "a.jsonl:65", "a.jsonl:66", "a.jsonl:69"]),
        "long": (1, ["a.jsonl:68"]),
    }
    assert "train: 1 example has letters of two scripts within a word, e.g. a.jsonl:67." in audit["warnings"]


def test_a_script_that_few_rows_have_is_told(write, text_task):
    rows = [f"ordinary sentence {i}" for i in range(97)] + ["Привет, как дела", "Ещё одна строка", "日本語とひらがな"]
    audit = make_splits(DataSection(train=write("a.jsonl", texts(rows)), validation=None), text_task, 0).audit
    assert audit["scripts"]["train"] == {"LATIN": 97, "CYRILLIC": 2, "CJK": 1}
    assert [w for w in audit["warnings"] if "letters" in w] == [
        "train: 2 of 100 examples are mostly in Cyrillic letters, e.g. a.jsonl:98.",
        "train: 1 of 100 examples is mostly in Cjk letters, e.g. a.jsonl:100.",
    ]


ENGLISH = "The delivery of the {}th parcel was late again and nobody at the counter could tell us where it was."
GERMAN = "Die Lieferung des {}. Pakets kam wieder zu spät und niemand am Schalter konnte uns sagen, wo es war."


def test_a_language_that_few_rows_are_in_is_told(write, text_task):
    rows = [(GERMAN if i % 25 == 3 else ENGLISH).format(i) for i in range(200)]
    source = write("a.jsonl", texts(rows))
    section = DataSection(train=source, validation=None, near_duplicates=None)
    audit = make_splits(section, text_task, 0).audit
    assert audit["languages"]["train"] == {"en": 192, "de": 8}
    assert audit["warnings"] == [
        "train: 8 of 200 longer examples seem to be in another language (de) than most (en), e.g. a.jsonl:4."
    ]


def test_short_texts_and_neighbouring_languages_are_no_surprise(write, text_task):
    from ftengine.data.languages import minorities

    rows = ["Guten Tag" if i == 3 else f"good day {i}" for i in range(60)]
    audit = make_splits(DataSection(train=write("a.jsonl", texts(rows)), validation=None), text_task, 0).audit
    assert audit["languages"] == {"train": {}}
    assert audit["warnings"] == []
    assert minorities({"en": 190, "de": 8, "fr": 1}) == ["de"]
    assert minorities({"hr": 190, "bs": 8}) == minorities({"en": 10, "de": 2}) == minorities({"en": 60, "de": 40}) == []


def test_personal_data_is_counted_and_never_shown_whole(write, text_task):
    values = ["jane.doe@mail.example.org", "+44 20 7946 0958", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00"]
    rows = [f"call or write: {value}, thank you {i}" for i, value in enumerate(values)]
    audit = make_splits(DataSection(train=write("a.jsonl", texts(rows)), validation=None), text_task, 0).audit
    assert audit["personal"]["train"] == {
        "email": {"count": 1, "places": ["a.jsonl:1 (j…rg)"]},
        "phone": {"count": 1, "places": ["a.jsonl:2 (+…58)"]},
        "card": {"count": 1, "places": ["a.jsonl:3 (4…11)"]},
        "iban": {"count": 1, "places": ["a.jsonl:4 (D…00)"]},
    }
    assert len([w for w in audit["warnings"] if "what looks like" in w]) == 4
    assert not any(value in json.dumps(audit, ensure_ascii=False) for value in values)


@pytest.mark.parametrize(
    "text",
    [
        "on 2024-05-31 at 18:00, 1,234,567.89 euros",
        "4111 1111 1111 1112",  # fails the Luhn check
        "DE89 3704 0044 0532 0130 01",  # fails the remainder
        "version 1.2.3.4, order 20240531123",
        "me @ home, a@b",
        "0000 0000 0000 0000",
        "at 1700000000004",  # milliseconds, which pass the Luhn check
        "9111 1111 1111 1110",  # no issuer's
        "pairs 01 23 45 67 89 01",
    ],
)
def test_other_numbers_are_no_personal_data(text):
    assert list(find_personal(text)) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("call 212-555-0123 now", "phone"),
        ("(020) 7946 0958", "phone"),
        ("0800 028 9276.", "phone"),
        ("+49 (0)89 1234567", "phone"),
        ("5500005555555559", "card"),
        ("3782 822463 10005", "card"),
        ("4111\u00a01111\u00a01111\u00a01111", "card"),
        ("6011111111111117", "card"),
        ("2223003122003222", "card"),
        ("01 23 45 67 89", "phone"),
        ("06.12.34.56.78", "phone"),
        ("DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000", "iban"),
        ("GB82WEST12345698765432", "iban"),
        ("mail: a_b+c@sub.example.co.uk!", "email"),
    ],
)
def test_personal_data_is_told_by_its_form(text, kind):
    assert [found for found, _ in find_personal(text)] == [kind]


EMAIL = "jane.doe@mail.example.org"


def test_labels_and_reasons_are_masked_in_the_audit(write, label_task):
    rows = [{"text": f"letter {i} to somebody", "label": f"{name}{EMAIL[4:]}"} for i in range(12) for name in "ab"]
    rows += [{"text": "one more", "label": EMAIL}]
    content = "".join(json.dumps(row) + "\n" for row in rows) + json.dumps(["write to", EMAIL, "x" * 30]) + "\n"
    held = write("held.jsonl", json.dumps({"text": "held out", "label": "a.doe@mail.example.org"}) + "\n")
    section = DataSection(train=write("a.jsonl", content), validation=None, test=held, on_error="skip")
    audit = make_splits(section, label_task, 0).audit
    assert audit["labels"]["train"]["counts"] == {"a…rg": 12, "b…rg": 12, "j…rg": 1}
    assert audit["labels"]["train"]["rarest"] == ["j…rg", 1]
    assert audit["labels"]["test"]["missing"] == ["b…rg", "j…rg"]
    assert "j…rg" in audit["splits"]["train"]["skipped"]["first"][0]
    assert "doe@" not in json.dumps(audit)


def test_values_are_masked_wherever_they_stand():
    assert mask(f"to {EMAIL}, card 4111 1111 1111 1111.") == "to j…rg, card 4…11."
    assert mask("call 2024-05-31") == "call 2024-05-31"
    assert mask("from JANE. DOE @ mail. example. org on", [EMAIL]) == "from J…rg on"
    pieces = [("to jane", False), ("O", True), ("##.doe@mail.", False), ("O", True), ("example.org!", False)]
    assert mask_pieces(pieces, [EMAIL]) == [("to j…rg", False), ("O", True), ("", False), ("O", True), ("!", False)]
    labels = {EMAIL: 0.5, "john@x.org": 0.25, "other": [EMAIL, None, 3]}
    assert mask_json(labels) == {"j…rg": 0.5, "j…rg (2)": 0.25, "other": ["j…rg", None, 3]}
