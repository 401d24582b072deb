"""What `plan` says of data that deserves a look."""

import json
import re
from itertools import pairwise

import pytest
import yaml
from tiny import tiny_t5


@pytest.fixture
def labelled(bert_folder, tmp_path, monkeypatch):
    """Write rows and a recipe for them into the working directory; returns the recipe."""
    monkeypatch.chdir(tmp_path)

    def write(rows, **data):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        content = {
            "model": {"source": str(bert_folder)},
            "task": "text-classification",
            "data": {"train": "rows.jsonl", "validation": 0.2, **data},
            "strategy": {"name": "full"},
            "train": {"max_steps": 2, "precision": "float32"},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "recipe.yaml"

    return write


def rows(count=40, **more):
    return [{"text": f"the film was good {i}", "label": "ab"[i % 2], **more} for i in range(count)]


def said(result):
    return " ".join(result.stdout.split())


def test_columns_that_nothing_reads_are_reported(ftengine, labelled):
    recipe = labelled(rows(weight=0, source="web", era=1))
    text = said(ftengine("plan", recipe, "--no-measure"))
    assert "columns that nothing uses: weight, source, era" in text
    sliced = ("--set", "evaluation.slices=[source]", "--set", "data.split={by: group, column: text}")
    grouped = said(ftengine("plan", recipe, "--no-measure", *sliced))
    assert "columns that nothing uses: weight, era steps" in grouped
    assert re.search(r"\d+ examples in \d+ groups of column 'text'", grouped)


def test_text_that_the_tokenizer_does_not_know_is_an_alarm(ftengine, labelled):
    """A tokenizer without kaomoji made one [UNK] of each, and nothing said so."""
    faces = [{"text": f"good ლ ღ ツ ♡ {i}", "label": "ab"[i % 2]} for i in range(40)]
    found = json.loads(ftengine("plan", labelled(faces), "--no-measure", "--json").stdout)["data"]
    [finding] = [finding for finding in found["findings"] if finding["source"] == "unknown-tokens"]
    counts = found["encoded"]["train"]
    assert finding["level"] == "alarm"
    assert counts["unknown"] == 4 * counts["examples"]
    assert finding["figures"]["shares"]["train"] == pytest.approx(counts["unknown"] / counts["tokens"])
    assert re.match(r"\d+ % of the training tokens and \d+ % of the validation tokens are \[UNK\]", finding["text"])
    assert "unknown-tokens" not in ftengine("plan", labelled(rows()), "--no-measure", "--json").stdout


def test_rows_that_are_skipped_are_not_audited_and_move_no_other_row(ftengine, labelled, tmp_path):
    """Two empty texts were left out, and then said to stand there with more than one label; those cut from a file took
    places of the validation split with them."""
    empty = [{"text": "", "label": label} for label in "ab"]
    unlabelled = [{"text": f"nobody knows {i}", "label": None} for i in range(30)]
    options = ("--no-measure", "--json", "--set", "data.on_error=skip")
    good = json.loads(ftengine("plan", labelled(rows(40)), *options).stdout)["data"]
    recipe = labelled([*empty, *unlabelled, *rows(40)])
    found = json.loads(ftengine("plan", recipe, *options).stdout)["data"]
    contents = [{name: split["content"] for name, split in one["encoded"].items()} for one in (found, good)]
    assert contents[0] == contents[1]
    assert [split["skipped"]["count"] for split in found["splits"].values()] == [32, 0]
    texts = {finding["source"]: finding["text"] for finding in found["findings"]}
    first = "rows.jsonl: 32 malformed rows were left out, the first: rows.jsonl:1: `text` is empty; it must hold some"
    assert texts["reading"].startswith(first)

    (tmp_path / "held.jsonl").write_text('{"text": "another film", "label": "a"}\n')
    recipe = labelled([*empty, *rows(40)], validation="held.jsonl")
    found = json.loads(ftengine("plan", recipe, *options).stdout)["data"]
    assert {split: counts["skipped"] for split, counts in found["encoded"].items()} == {"train": 2, "validation": 0}
    assert [one["rows"] for one in found["splits"].values()] == [40, 1]
    assert [one["rows"] for one in found["facts"]["sources"]] == [40, 1]
    texts = {finding["source"]: finding["text"] for finding in found["findings"] if finding["level"] != "good"}
    assert "contradictions" not in texts
    assert "oddities" not in texts
    assert texts["lengths"] == (
        "2 of 42 training rows cannot be used and are left out, e.g. rows.jsonl:1: `text` is empty; it must hold some "
        "text."
    )


@pytest.mark.parametrize(("held_out", "said"), [(6, True), (19, True), (20, False)])
def test_a_split_of_few_examples_is_reported(ftengine, labelled, held_out, said):
    stdout = ftengine("plan", labelled(rows(80), validation=held_out / 80), "--no-measure", "--json").stdout
    found = json.loads(stdout)
    assert found["data"]["encoded"]["validation"]["examples"] == held_out
    text = f"the validation split has {held_out} examples, too few to tell much by: hold out more (data.validation)"
    assert any(one.startswith(text) for one in found["warnings"]) == said


@pytest.mark.parametrize(("setting", "warned"), [("warmup=1000", True), ("warmup=0.5", False), ("weight_decay=5", True),
                                               ("weight_decay=0.1", False)])  # fmt: skip
def test_settings_far_from_what_is_usual_are_warnings(ftengine, labelled, setting, warned):
    stdout = ftengine("plan", labelled(rows(80)), "--no-measure", "--json", "--set", f"train.{setting}").stdout
    name = setting.partition("=")[0]
    assert (f"train.{name}" in json.loads(stdout)["warnings"][0]) == warned


def test_a_column_of_which_no_slice_will_be_tested_is_reported(ftengine, labelled):
    recipe = labelled([{**row, "source": f"s{i % 47}", "era": i % 2} for i, row in enumerate(rows(400))])
    text = said(ftengine("plan", recipe, "--no-measure", "--set", "evaluation.slices=[source,era]"))
    assert "no slice has 30 examples" in text
    assert text.count("none is tested") == 1


def test_data_beside_the_recipe_is_found_and_reported(ftengine, labelled, tmp_path, monkeypatch):
    recipe = labelled(rows())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = said(ftengine("plan", recipe, "--no-measure"))
    assert f"folder: {tmp_path}" in text


@pytest.fixture
def chat_plan(ftengine, llama_folder, tmp_path, monkeypatch):
    """Plan a run on conversations; returns what `plan --json` says."""
    monkeypatch.chdir(tmp_path)

    def plan(rows, **content):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = {
            "model": {"source": str(llama_folder)},
            "task": "causal-lm",
            "data": {"train": "rows.jsonl", "validation": None},
            "strategy": {"name": "full"},
            "train": {"max_steps": 2, "precision": "float32"},
            **content,
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return json.loads(ftengine("plan", "recipe.yaml", "--no-measure", "--json").stdout)

    return plan


def found_by(plan, source):
    return [finding for finding in plan["data"]["findings"] if finding["source"] == source]


def conversations(question=None, answer=None, **columns):
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {i}?", **(question or {})},
                {"role": "assistant", "content": f"One less than {i + 1}.", **(answer or {})},
            ],
            **columns,
        }
        for i in range(8)
    ]


def test_instructions_in_the_data_that_nothing_reads_are_reported(chat_plan):
    [finding] = found_by(chat_plan(conversations(answer={"weight": 1}, mask=[], source="a")), "unread-keys")
    assert finding["figures"]["keys"] == ["mask"]
    assert finding["places"] == ["rows.jsonl:1"]


def test_weights_that_are_read_are_no_finding(chat_plan):
    plan = chat_plan(conversations(answer={"weight": 1}, name="x"))
    assert found_by(plan, "unread-keys") == []
    assert plan["data"]["encoded"]["train"]["unread"] == {"name": "rows.jsonl:1"}
    rows = conversations()[:4] + conversations(answer={"weight": 0})[4:]
    assert chat_plan(rows)["data"]["encoded"]["train"]["untrained_rows"] == 4


def test_the_longest_example_is_one_number(ftengine, tmp_path, monkeypatch):
    """Of prompt and completion the longer counts, in the table of splits as in that of lengths."""
    monkeypatch.chdir(tmp_path)
    tiny_t5(tmp_path / "t5")
    rows = [{"prompt": "the fox " * (i + 2), "completion": "dog " * (2 * i + 1)} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"source": "t5"},
        "task": {"name": "seq2seq-lm"},
        "data": {"train": "rows.jsonl", "validation": None},
        "strategy": "full",
        "train": {"max_steps": 1, "precision": "float32"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for limit in ("null", "12"):
        options = ("--no-measure", "--set", f"task.max_length={limit}", "--set", f"task.max_completion_length={limit}")
        data = json.loads(ftengine("plan", "recipe.yaml", *options, "--json").stdout)["data"]
        [lengths] = [display for display in data["displays"] if display["title"] == "Lengths"]
        row = dict(zip(lengths["columns"], lengths["rows"][0], strict=True))
        assert row["median"] <= row["95 %"] <= row["99 %"] <= row["longest"]
        words = {}
        lines = ftengine("plan", "recipe.yaml", *options).stdout.splitlines()
        for header, line in pairwise(lines):
            if "distinct" in header and "longest" in header:
                words = dict(zip(*(re.split(r" {2,}", text.strip()) for text in (header, line)), strict=True))
        assert int(words["longest"]) == row["longest"]


@pytest.mark.parametrize(("equal", "level"), [(0, None), (2, "note"), (14, "alarm")])
def test_pairs_that_differ_by_white_space_or_case_alone_are_found(chat_plan, equal, level):
    pairs = [{"prompt": f"What is {i}?", "chosen": f"It is {i}", "rejected": f"not {i}"} for i in range(20)]
    for i in range(equal):
        pairs[i]["rejected"] = (f"It is {i} ", f" it  is\n{i}")[i % 2]
    found = found_by(chat_plan(pairs, task="preference"), "equal-answers")
    assert [(one["level"], one["figures"]["equal"], one["figures"]["pairs"]) for one in found] == (
        [(level, equal, 20)] if level else []
    )


def test_preferences_that_say_the_contrary_are_reported_and_several_answers_to_a_prompt_are_none(chat_plan):
    pairs = [{"prompt": f"What is {i}?", "chosen": f"a {i}", "rejected": f"b {i}"} for i in range(20)]
    more = [{**row, "chosen": f"{row['chosen']} or so"} for row in pairs]
    assert found_by(chat_plan([*pairs, *more], task="preference"), "contradictions") == []
    assert found_by(chat_plan([*pairs, *more], task="preference"), "contrary-preferences") == []
    turned = {**pairs[0], "chosen": pairs[0]["rejected"], "rejected": pairs[0]["chosen"]}
    [finding] = found_by(chat_plan([*pairs, turned], task="preference"), "contrary-preferences")
    assert (finding["level"], finding["places"]) == ("alarm", ["rows.jsonl:1 ≠ rows.jsonl:21"])
    answers = [{"prompt": f"What is {i}?", "completion": f"{i}.", "label": bool(i % 2)} for i in range(20)]
    assert found_by(chat_plan(answers, task="unpaired-preference"), "contrary-preferences") == []
    plan = chat_plan([*answers, {**answers[0], "label": True}], task="unpaired-preference")
    [finding] = found_by(plan, "contrary-preferences")
    assert finding["places"] == ["rows.jsonl:1 ≠ rows.jsonl:21"]
    assert {one["kind"] for one in plan["examples"]} == {"desirable", "undesirable"}  # one of each is shown


@pytest.mark.parametrize(("tokens", "cut"), [(8, 3), (60, 0)])
@pytest.mark.parametrize("form", ["prompt", "messages"])
def test_reference_answers_longer_than_answers_may_become_are_a_warning(chat_plan, tmp_path, form, tokens, cut):
    def row(i, length):
        answer = " ".join(["good"] * length)
        if form == "prompt":
            return {"prompt": f"how {i}", "completion": answer}
        asked = {"role": "user", "content": f"how {i}"}
        return {"messages": [asked, {"role": "assistant", "content": answer}]}

    held = [row(i, 30 if i < 3 else 2) for i in range(6)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(one) + "\n" for one in held))
    found = chat_plan(
        [row(i, 2) for i in range(10, 20)],
        data={"train": "rows.jsonl", "validation": None, "test": "held.jsonl", "near_duplicates": None},
        evaluate=["generation"],
        evaluation={"generate": {"max_new_tokens": tokens}},
    )
    warned = [text for text in found["warnings"] if "evaluation.generate.max_new_tokens" in text]
    assert [text.startswith(f"{cut} of 6 reference answers (50 %)") for text in warned] == [True] * bool(cut)


def test_that_the_machine_is_busy_is_the_last_warning():
    from types import SimpleNamespace

    from ftengine.cli.plan import _warnings

    finding = {"level": "note", "source": "balance", "text": "rare."}
    plan = SimpleNamespace(data={"findings": [finding]}, warnings=["a rate.", "rare.", "the machine is busy (x)."])
    assert [text for _, text in _warnings(plan)] == ["a rate.", "rare.", "the machine is busy (x)."]
