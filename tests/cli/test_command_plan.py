"""What `plan` says of data that deserves a look."""

import json
import re

import pytest
import yaml


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


def test_columns_that_nothing_reads_are_said(ftengine, labelled):
    recipe = labelled(rows(weight=0, source="web", era=1))
    text = said(ftengine("plan", recipe, "--no-measure"))
    assert "columns that nothing uses: weight, source, era" in text
    sliced = ("--set", "evaluation.slices=[source]", "--set", "data.split={by: group, column: text}")
    assert "columns that nothing uses: weight, era steps" in said(ftengine("plan", recipe, "--no-measure", *sliced))


def test_nothing_is_said_where_all_columns_are_read(ftengine, labelled):
    assert "nothing uses" not in said(ftengine("plan", labelled(rows()), "--no-measure"))


def test_text_that_the_tokenizer_does_not_know_is_an_alarm(ftengine, labelled):
    """A tokenizer without kaomoji made one [UNK] of each, and nothing said so."""
    faces = [{"text": f"good ლ ღ ツ ♡ {i}", "label": "ab"[i % 2]} for i in range(40)]
    found = json.loads(ftengine("plan", labelled(faces), "--no-measure", "--json").stdout)["data"]
    [finding] = [finding for finding in found["findings"] if finding["source"] == "unknown-tokens"]
    counts = found["encoded"]["train"]
    assert finding["level"] == "alarm"
    assert counts["unknown"] == 4 * counts["examples"]
    assert finding["figures"]["shares"]["train"] == pytest.approx(counts["unknown"] / counts["tokens"])
    assert re.match(
        r"\d+\.\d% of the training tokens and \d+\.\d% of the validation tokens are \[UNK\]", finding["text"]
    )
    assert "unknown-tokens" not in ftengine("plan", labelled(rows()), "--no-measure", "--json").stdout


def test_data_beside_the_recipe_is_found_and_said(ftengine, labelled, tmp_path, monkeypatch):
    recipe = labelled(rows())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = said(ftengine("plan", recipe, "--no-measure"))
    assert f"data.train is not in the working directory; it is read from the recipe's folder: {tmp_path}" in text
