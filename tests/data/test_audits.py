"""Scripts, languages, personal data and wrong encodings; and an audit of a third party."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest

from ftengine.api import Finding, Matrix, View
from ftengine.run.directory import RunDirectory
from ftengine.run.evaluation_result import Details, Displays, EvaluationResult
from ftengine.run.records import Verdict
from ftengine.text import find_personal, redact, redact_json, redact_pieces
from ftengine_builtins.audits.conversations import Conversations
from ftengine_builtins.audits.counting import share_within
from ftengine_builtins.audits.number_targets import NumberTargets
from ftengine_builtins.audits.preferences import EqualAnswers
from ftengine_builtins.audits.texts import is_garbled


def texts(names) -> str:
    return "".join(json.dumps({"text": name}) + "\n" for name in names)


def told(result, source):
    return [finding.text for finding in result.findings if finding.source == source]


def test_what_no_template_writes_is_found():
    counts = {"conversations": 2, "targets": 2, "end_of_turn": 2, "tokens.assistant": 9, "unwritten.is_error": 3}
    data = SimpleNamespace(encoded={"train": {"rows": 2, "counts": counts}})
    (finding,) = [one for one in Conversations().examine(data) if isinstance(one, Finding)]
    assert "`is_error` of 3 messages in training examples" in finding.text
    assert finding.figures == {"train": {"unwritten.is_error": 3}}


@pytest.mark.parametrize(("system", "level"), [(60, "alarm"), (20, "note")])
def test_a_loss_that_is_mostly_that_of_system_prompts_is_an_alarm(system, level):
    counts = {"conversations": 2, "targets": 2, "end_of_turn": 2, "tokens.assistant": 40, "tokens.system": system}
    data = SimpleNamespace(encoded={split: {"rows": 2, "counts": counts} for split in ("train", "test")})
    found = [one for one in Conversations().examine(data) if isinstance(one, Finding)]
    assert [one.level for one in found] == [level, "note"]
    assert ("quality" in found[0].explains) == (level == "alarm")


class Numbered(list):
    def where(self, row):
        return f"prices.csv:{row}"


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0] * 40, []),
        ([0.1] * 199 + [0.9], ["alarm"]),  # all but one are the same
        ([0.1] * 180 + [0.2, 0.3] * 10, ["note"]),
        ([10.0] * 200, ["alarm"]),
        ([5000.0, 7000.0, 9000.0, 8000.0] * 50, []),
        ([5000.0, 7000.0, 9000.0, 8000.0] * 50 + [900000.0], ["note"]),
        (["a", "b"] * 100, []),
    ],
)
def test_numbers_that_outweigh_all_others_are_found(values, levels):
    rows = Numbered(View([f"text {i}"], value, classes=True) for i, value in enumerate(values))
    findings = list(
        NumberTargets().examine(SimpleNamespace(splits={"train": rows}, targets={"train": np.zeros(len(rows))}))
    )
    assert [one.level for one in findings] == levels
    assert all(one.places[0] == f"prices.csv:{0 if 'same' in one.figures else len(values) - 1}" for one in findings)


def test_negatives_that_are_their_positives_do_not_make_equal_answers_count():
    """Pairs of equal answers are left out by the task, and counted there."""
    of_pair = [View(["q"], {"chosen": "a", "rejected": "a"})] * 9
    rows = Numbered([View(["q", "yes", "yes"], identity=["q", "yes", "yes"]), *of_pair])
    (found,) = EqualAnswers().examine(SimpleNamespace(splits={"train": rows}))
    assert (found.figures["equal"], found.figures["pairs"]) == (1, 10)


SPREAD = [round(1 + 0.017 * i % 4, 3) for i in range(200)]


@pytest.mark.parametrize(
    ("values", "factor"),
    [
        ([3.211, 1.75, 4.7, 2.5] * 50 + [3211.0, 1750.0, 4700.0], 1000),
        ([i % 20 + 4.99 for i in range(200)] + [749.0, 999.0, 1299.0, 549.0], None),  # prices of other things
        ([i % 20 + 4.99 for i in range(200)] + [799.0, 999.0, 1299.0, 599.0], 100),
        ([3.2, 1.7, 2.9, 2.5] * 50 + [32.0, 17.0, 29.0], 10),
        ([3.2, 1.7, 4.9, 2.5] * 50 + [3211.0, 1650.0], None),  # two may be outliers
        ([3.2, 1.7, 4.9, 2.5] * 50 + [30.0, 300.0, 3000.0], None),  # growing to any size
        ([3.2, 1.7, 4.9, 2.5, 3211.0, 1650.0] * 50, None),  # a third of them: of two kinds
        ([-3.2, 1.7, 4.9, 2.5] * 50 + [3211.0, 1650.0, 4700.0], None),
        (SPREAD + [float(round(1000 * value)) for value in SPREAD[::23]], 1000),
        (SPREAD + [4000.0 + i for i in range(9)], None),  # all of them near the upper end
        (SPREAD + [1500.0] * 9, None),  # a code
        ([*SPREAD, 1100.0, 1300.5, 2100.5, 3300.5], None),  # with a fraction
        ([float(i % 10 + 1) for i in range(200)] + [70.0, 90.0, 80.0, 60.0], None),  # no points to lose
        ([i % 15 + 5.99 for i in range(200)] + [110.0, 120.0, 150.0, 180.0], None),  # of two decimals, by 10
        (np.random.default_rng(0).lognormal(0, 2, 2000).tolist(), None),
        (np.random.default_rng(1).pareto(1, 2000).tolist(), None),
    ],
)
def test_numbers_whose_decimal_point_was_lost_are_found(values, factor):
    named = [str(int(value)) if value == int(value) else value for value in values]  # as kind: auto reads a row
    rows = Numbered(View([f"text {i}"], value, classes=True) for i, value in enumerate(named))
    findings = list(
        NumberTargets().examine(SimpleNamespace(splits={"train": rows}, targets={"train": np.zeros(len(rows))}))
    )
    alarms = [one for one in findings if one.level == "alarm" and "code" not in one.figures]
    assert [one.figures["factor"] for one in alarms] == ([factor] if factor else [])
    assert all((one.places[0], "quality" in one.explains) == ("prices.csv:200", True) for one in alarms)


@pytest.mark.parametrize(("code", "level"), [(999.0, "alarm"), (1000.0, "note"), (-1.0, "note"), (4.01, None)])
def test_a_code_for_a_missing_number_is_an_alarm_where_it_outweighs_the_others(code, level):
    named = [str(int(value)) if value == int(value) else value for value in [*SPREAD, *[code] * 9]]
    rows = Numbered(View([f"text {i}"], value, classes=True) for i, value in enumerate(named))
    findings = list(
        NumberTargets().examine(SimpleNamespace(splits={"train": rows}, targets={"train": np.zeros(len(rows))}))
    )
    assert [(one.level, one.figures["code"], one.figures["count"]) for one in findings] == (
        [(level, code, 9)] if level else []
    )
    assert all((one.places[0], "quality" in one.explains) == ("prices.csv:200", True) for one in findings)


def test_a_script_that_few_rows_have_is_found(write, text_task, audit):
    rows = [f"ordinary sentence {i}" for i in range(97)] + ["Привет, как дела", "Ещё одна строка", "日本語とひらがな"]
    result = audit(text_task, write("a.jsonl", texts(rows)))
    assert told(result, "languages") == [
        "2 of 100 training rows are mostly in Cyrillic letters (e.g. a.jsonl:98).",
        "1 of 100 training rows is mostly in Chinese or Japanese letters (e.g. a.jsonl:100).",
    ]
    [table] = result.displays
    assert table.rows == (("Latin", 97), ("Cyrillic", 2), ("Chinese or Japanese", 1))


ENGLISH = "The delivery of the {}th parcel was late again and nobody at the counter could tell us where it was."
GERMAN = "Die Lieferung des {}. Pakets kam wieder zu spät und niemand am Schalter konnte uns sagen, wo es war."


def test_a_language_that_few_rows_are_in_is_found(write, text_task, audit, monkeypatch):
    let_go = []
    monkeypatch.setattr("ftengine_builtins.audits.languages._identifier.cache_clear", lambda: let_go.append(True))
    rows = [(GERMAN if i % 25 == 3 else ENGLISH).format(i) for i in range(200)]
    result = audit(text_task, write("a.jsonl", texts(rows)), near_duplicates=None)
    assert told(result, "languages") == [
        "8 of 200 longer training rows seem to be in another language (de) than most (en), e.g. a.jsonl:4."
    ]
    assert [table.rows for table in result.displays] == [(("en", 192), ("de", 8))]
    assert let_go == [True]  # 70 MB


WRONG = [
    "Привет, мир",
    "Γειά σου",
    "日本語のテキスト",
    "한국어",
    "سلام",
    "שלום",
    "ok 😀 then",
    "café",
    "naïve",
    "Größe",
]
WRONG += ["it’s “so”", "José’s “house”", "20 °C", "€ 5", "« été »", "voilà vu", "→ here", "\ufeffx"]


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_utf8_that_was_read_otherwise_is_found(text, encoding):
    wrong = "".join(bytes([b]).decode(encoding, "ignore") or chr(b) for b in text.encode())
    assert is_garbled(wrong)
    assert not is_garbled(text)


FINE = ["Fuß“ sagte er", "Spaß…”", "“olé’”", "cliché…” he said", "CAFÉ…", "CAFÉ™", "JOSÉ’S", "Úžasný", "Úžas!", "ÇÃO"]
FINE += ["l'été\u00a0» dit-il", "l'été\u00a0»\u00a0–", "«AMANHÃ»", "AMANHÃ…", "“Å”", "±5 µm", "½ ¼", "š"]


@pytest.mark.parametrize("text", FINE)
def test_text_that_could_be_read_back_by_chance_is_fine(text):
    assert not is_garbled(text)


def test_personal_data_is_counted_and_its_values_are_named_nowhere(write, text_task, audit):
    values = ["jane.doe@mail.example.org", "+44 20 7946 0958", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00"]
    rows = [f"call or write: {value}, thank you {i}" for i, value in enumerate(values)]
    result = audit(text_task, write("a.jsonl", texts(rows)))
    assert told(result, "personal-data") == [
        "1 of 4 training rows holds what looks like e-mail addresses (e.g. a.jsonl:1).",
        "1 of 4 training rows holds what looks like telephone numbers (e.g. a.jsonl:2).",
        "1 of 4 training rows holds what looks like payment card numbers (e.g. a.jsonl:3).",
        "1 of 4 training rows holds what looks like bank accounts (IBAN) (e.g. a.jsonl:4).",
    ]
    assert not any(value in result.model_dump_json() for value in values)


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
        "loss 573.141 against 713.816 (1645 to 24678)",
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
        ("+91 22 2778 1234", "phone"),
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
def test_personal_data_is_found_by_its_form(text, kind):
    assert [found for found, _ in find_personal(text)] == [kind]


EMAIL = "jane.doe@mail.example.org"


def test_labels_and_reasons_are_redacted_where_the_audit_is_written(write, label_task, audit, tmp_path):
    rows = [{"text": f"letter {i} to somebody", "label": f"{name}{EMAIL[4:]}"} for i in range(12) for name in "ab"]
    rows += [{"text": "one more", "label": EMAIL}]
    content = "".join(json.dumps(row) + "\n" for row in rows) + json.dumps(["write to", EMAIL, "x" * 30]) + "\n"
    held = write("held.jsonl", json.dumps({"text": "held out", "label": "a.doe@mail.example.org"}) + "\n")
    result = audit(label_task, write("a.jsonl", content), test=held, on_error="skip")
    run = RunDirectory(tmp_path / "run")
    run.create()
    result.write(run)
    written = (run.path / "audit.json").read_text()
    assert "'j…rg'" in written
    assert '"a…rg"' in written
    assert "doe@" not in written


def test_labels_are_redacted_where_figures_are_written(tmp_path):
    facts = {"labels": [{"label": EMAIL, "support": 3}]}
    matrix = Matrix(title="Confusion matrix", names=(EMAIL,), cells=((3,),))
    result = EvaluationResult(
        split="test",
        metrics={},
        base={},
        tuned={},
        difference={},
        details=Details(tuned={"any": facts}),
        displays=Displays(tuned=(matrix,)),
    )
    run = RunDirectory(tmp_path / "run")
    run.create()
    result.write(run)
    finding = Finding(kind="quality", level="alarm", text=f"It always answers {EMAIL}.", figures={"label": EMAIL})
    Verdict(headline=finding.text, level="alarm", findings=(finding,)).write(run)
    written = [(run.path / name).read_text() for name in ("evaluation.json", "verdict.json")]
    assert all("j…rg" in text and EMAIL not in text for text in written)


def test_values_are_redacted_wherever_they_stand():
    assert redact(f"to {EMAIL}, card 4111 1111 1111 1111.") == "to j…rg, card 4…11."
    assert redact("call 2024-05-31") == "call 2024-05-31"
    assert redact("from JANE. DOE @ mail. example. org on", [EMAIL]) == "from J…rg on"
    pieces = [("to jane", False), ("O", True), ("##.doe@mail.", False), ("O", True), ("example.org!", False)]
    assert redact_pieces(pieces, [EMAIL]) == [("to j…rg", False), ("O", True), ("", False), ("O", True), ("!", False)]
    labels = {EMAIL: 0.5, "john@x.org": 0.25, "other": [EMAIL, None, 3]}
    assert redact_json(labels) == {"j…rg": 0.5, "j…rg (2)": 0.25, "other": ["j…rg", None, 3]}


@pytest.mark.parametrize(("lists", "separator"), [
    (["tea, rain", "rain, salt", "salt", "tea", "rain"], ","), (["tea;rain", "rain;salt", "tea;salt"], ";"),
    (["Food, drink", "Law, order", "Home", "Art"], None), (["tea", "rain", "salt"], None),
])  # fmt: skip
def test_lists_that_are_labels_are_named_with_their_separator(write, audit, label_task, lists, separator):
    rows = [{"text": f"row {i}", "label": lists[i % len(lists)]} for i in range(40)]
    file = write("train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found = [one for one in audit(label_task, file).findings if one.source == "joined-labels"]
    assert [one.figures["separator"] for one in found] == ([separator] if separator else [])
    assert [one.level for one in found] == (["alarm" if separator == ";" else "note"] if separator else [])


def test_paths_of_labels_are_no_alarm(write, audit, label_task):
    names = ["Sport", "Sport/Ball", "Sport/Race", "News", "News/Home", "News/World", "Ball", "Race", "Home", "World"]
    rows = [{"text": f"row {i}", "label": names[i % 6]} for i in range(60)]
    rows += [{"text": f"line {i}", "label": names[i % 4 + 6]} for i in range(4)]
    file = write("train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert {one.level for one in audit(label_task, file).findings if one.source == "joined-labels"} <= {"note"}


@pytest.mark.parametrize("total", [1, 2, 57, 10**6])
def test_an_interval_of_a_share_is_wilson_s(total):
    for count in {0, 1, total // 3, total - 1, total}:
        expected = binomtest(count, total).proportion_ci(method="wilson")
        assert share_within(count, total) == pytest.approx((expected.low, expected.high), abs=1e-12)
