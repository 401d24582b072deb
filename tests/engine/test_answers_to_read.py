"""What base and tuned model write to held-out prompts: made by default, kept in the run, shown in the report."""

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from rows import sentences, write_rows

from ftengine import fine_tune
from ftengine.cli import main
from ftengine.run.evaluation_result import Examples
from ftengine_builtins.tasks.causal_lm import CausalLM

DOZEN = 12
EMAIL = "jane.doe@example.org"


@pytest.fixture(scope="module")
def chat_run(build_chat_recipe, tmp_path_factory):
    return fine_tune(
        build_chat_recipe(
            output=str(tmp_path_factory.mktemp("chat") / "run"),
            data__test=0.3,
            evaluation__answers=12,
            evaluation__reuse_base=True,
        )
    )


def answers_of(run):
    return Examples.read(run.directory).answers


def rows_at(run, places):
    lines = Path(run.recipe.data.train).read_text(encoding="utf-8").splitlines()
    return [json.loads(lines[int(place.rpartition(":")[2]) - 1]) for place in places]


def test_a_dozen_held_out_prompts_are_answered_by_both_models_as_predict_answers_them(chat_run):
    found = answers_of(chat_run)
    rows = rows_at(chat_run, [one.place for one in found])
    assert len({one.place for one in found}) == DOZEN
    assert [one.prompt for one in found] == [row["messages"][0]["content"] for row in rows]
    assert [one.wanted for one in found] == [row["messages"][1]["content"] for row in rows]
    for side, base in (("base", True), ("tuned", False)):
        said = chat_run.predict(rows, base=base, options=CausalLM.short_generation)
        assert [getattr(one, side) for one in found] == [answer["completion"] for answer in said]
    assert any(one.base != one.tuned for one in found)
    held_out = pq.read_table(chat_run.path / "predictions" / "test-tuned.parquet")["place"].to_pylist()
    assert {one.place for one in found} <= set(held_out)
    assert Examples.read(chat_run.directory).answered_with == CausalLM.short_generation


def test_they_stand_in_the_report_and_a_few_in_what_train_prints(chat_run):
    page = (chat_run.path / "report.html").read_text(encoding="utf-8")
    section = page.split('id="run1-answers"')[1].split("</section>")[0]
    assert section.count('class="place"') == DOZEN
    recipe = chat_run.path.parent / "recipe.yaml"
    recipe.write_text((chat_run.path / "recipe.yaml").read_text())
    printed = CliRunner().invoke(main, ["train", str(recipe), "--resume"]).stdout  # finished: printed again
    lines = [line.split() for line in printed.split("answers to held-out prompts")[1].splitlines()]
    assert [line[0] for line in lines if line][1:13] == ["prompt", "reference", "base", "tuned"] * 3
    told = json.loads(CliRunner().invoke(main, ["train", str(recipe), "--resume", "--json"]).stdout)
    assert told["answers"] == [one.model_dump() for one in answers_of(chat_run)]


def test_likely_personal_data_is_masked_in_them(llama_folder, chat_recipe, tmp_path, monkeypatch):
    rows = [{"prompt": f"{i}: who is {EMAIL}?", "completion": f"{EMAIL} is number {i}."} for i in range(20)]
    # A tiny model writes no address by itself.
    write = CausalLM.generate
    monkeypatch.setattr(
        CausalLM,
        "generate",
        lambda *args: [{**one, "completion": "Ask Jane.Doe@example.org, 212-555-0123."} for one in write(*args)],
    )
    data = write_rows(tmp_path / "mail.jsonl", rows)
    run = fine_tune(chat_recipe(data__train=data, data__validation=0.5, train__max_steps=1, evaluation__answers=12))
    text = (run.path / "examples.json").read_text(encoding="utf-8")
    assert "jane" not in text.lower()
    assert {one.tuned for one in answers_of(run)} == {"Ask J…rg, 2…23."}


@pytest.mark.slow
def test_the_surest_mistakes_of_a_classifier_are_kept_surest_first(label_recipe, tmp_path):
    rng = random.Random(1)
    rows = [
        {**row, "label": "sport" if i % 4 == 0 else row["label"]}
        for i, row in enumerate(sentences(120, random.Random(0)))
    ]
    rng.shuffle(rows)
    run = fine_tune(label_recipe(data__train=write_rows(tmp_path / "noisy.jsonl", rows), train__epochs=6))
    table = pq.read_table(run.path / "predictions" / "test-tuned.parquet").to_pylist()
    wrong = sorted((-max(row["scores"]), row["place"]) for row in table if row["label"] != row["predicted"])
    found = Examples.read(run.directory).mistakes
    assert len(found) > 2
    assert [-one.confidence for one in found] == pytest.approx([sure for sure, _ in wrong[:10]])
    assert {one.place for one in found} == {place for _, place in wrong[:10]}
    assert not any(one.tuned_right for one in found)
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert f"a wrong answer with probability {found[0].confidence:.2g}" in page
