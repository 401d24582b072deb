"""Answers on demand: a trained run's models answer held-out prompts that the evaluation left out."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from rows import write_rows
from tiny import tiny_llama

from ftengine import Recipe, fine_tune
from ftengine.api import SilentListener
from ftengine.errors import InputError
from ftengine_studio import command
from ftengine_studio.answers import NEW, answers_of, make_answers, pairs_of
from ftengine_studio.runs import find_runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run with 12 held-out rows, of which its evaluation answered 3."""
    folder = tmp_path_factory.mktemp("answers")
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}", "desk": "ab"[i % 2]} for i in range(24)]
    content = {
        "model": {"source": str(tiny_llama(folder / "llama"))},
        "task": "causal-lm",
        "data": {"train": write_rows(folder / "rows.jsonl", rows), "validation": None, "test": 0.5},
        "strategy": "lora",
        "train": {"max_steps": 2, "precision": "float32", "learning_rate": 0.05},
        "evaluation": {
            "answers": 3,
            "slices": ["desk"],
            "training_sample": None,
            "resamples": 100,
            "generate": {"max_new_tokens": 5},
        },
        "output": str(folder / "run"),
    }
    fine_tune(Recipe.make(content), listener=SilentListener())
    return find_runs([folder / "run"])[0]


def test_new_answers_are_of_the_evaluation_s_kind_and_made_once(run, monkeypatch):
    (first, *_) = before = list(answers_of(run).values())
    assert len(before) == 3
    monkeypatch.setattr(command, "_serve", lambda *arguments, **options: None)
    shown = CliRunner().invoke(command.studio, [str(run.path), "--new", "4", "--seed", "1"], catch_exceptions=False)
    assert "4 new, 7 prompts" in shown.stderr
    assert [f"answers of the {side} model: 4" in shown.stderr for side in ("base", "tuned")] == [True, True]
    made = list(answers_of(run).values())
    assert len(made) == 7
    assert made[:3] == before
    assert {one.slices["desk"] for one in made[3:]} <= {"a", "b"}
    assert make_answers(run, 100, seed=1) == 5
    assert make_answers(run, 100, seed=1) == 0
    assert sorted(pair.row for pair in pairs_of(run)) == list(range(12))
    # What the evaluation wrote comes out again where its file is gone.
    for side in ("base", "tuned"):
        (run.path / "predictions" / f"answers-{side}.parquet").unlink()
    make_answers(run, 100, seed=2)
    again = answers_of(run)[first.key]
    assert (again.prompt, again.reference, again.base, again.tuned) == (
        first.prompt,
        first.reference,
        first.base,
        first.tuned,
    )


def test_changed_data_is_refused(run, monkeypatch):
    audit = run.read("audit.json")
    audit["encoded"]["test"]["content"] = "0"
    monkeypatch.setattr(type(run), "read", lambda self, name: audit)
    (run.path / NEW).unlink(missing_ok=True)
    with pytest.raises(InputError, match="changed"):
        make_answers(run, 1, seed=0)
    assert not (run.path / NEW).exists()
    assert json.loads((run.path / "audit.json").read_text()) != audit
