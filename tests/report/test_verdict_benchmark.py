"""benchmarks/verdicts.py: truths of several files, and what following a verdict's advice comes to."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ftengine.api import Estimate, Finding
from ftengine.errors import RunError
from ftengine.plugins.registry import Registry

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def program():
    sys.path.append(str(FOLDER))
    spec = importlib.util.spec_from_file_location("verdicts_benchmark", FOLDER / "verdicts.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(FOLDER))
    return module


def test_truths_of_all_files_have_names_of_their_own(program):
    names = [truth.name for truth in program.TRUTHS]
    assert len(set(names)) == len(names)
    assert len(program.FILES) == len(list(FOLDER.glob("verdicts_truths*.py"))) > 1
    sources = {entry.cls.name for kind in ("rule", "audit") for entry in Registry().entries(kind)}
    assert {source for source, _ in sys.modules["verdicts_follow"].ADVICE} <= sources


@pytest.mark.parametrize(
    ("source", "figures", "advice"),
    [
        ("learning-curve", {"steps": 100, "change": {}, "rate": 1e-5}, "another rate"),
        ("learning-curve", {"steps": 6, "passes": 0.2}, "longer"),
        ("calibrated-confidence", {"metric": "ece"}, None),
        ("own", {"row": 1}, "data mended"),
    ],
)
def test_advice_is_the_first_findings_or_the_truths_own_mend(program, source, figures, advice):
    def mend(recipe):
        return recipe

    truth = program.Truth("x", make=None, named=lambda one: one.source == "own", mend=mend)
    finding = Finding(kind="quality", level="alarm", text="Do.", source=source, figures=figures)
    verdict = program.Verdict(headline="Do.", level="alarm", findings=(finding,))
    found = program.advice_on(truth, verdict)
    assert (found and found[0]) == advice
    if advice == "another rate":
        assert found[1]({"train": {"learning_rate": 1e-7}})["train"] == {"learning_rate": 1e-5}
    if advice == "longer":
        assert found[1]({"train": {"max_steps": 6}})["train"] == {"max_steps": 18}


@pytest.mark.parametrize(
    ("steps", "outcome"),
    [
        ([("a", False), ("b", False)], "next"),
        ([("a", False), ("b", True)], "better"),
        ([("a", False), ("a", True)], "better"),
        ([("a", False), ("b", False), ("a", False)], "circle"),
        ([("a", False), ("a", False)], "circle"),
    ],
)
def test_a_repeated_verdict_is_a_circle(program, steps, outcome):
    assert program.followed([{"key": (key, ""), "better": better} for key, better in steps]) == outcome


@pytest.mark.parametrize(
    ("paired", "new", "better"),
    [
        (True, (0.8, 0.7, 0.9), True),
        (None, (0.8, 0.7, 0.9), False),  # higher, and within chance
        (False, (0.2, 0.1, 0.3), False),
        ("other rows", (0.9, 0.85, 0.95), True),
        ("other rows", (0.65, 0.55, 0.75), False),
        ("other rows", (0.2, 0.1, 0.3), False),
    ],
)
def test_better_is_the_deciding_figure_beyond_chance(program, monkeypatch, paired, new, better):
    """The loss, which is far lower each time, does not decide."""

    def records(accuracy, loss):
        figures = {"loss": Estimate(loss, loss, loss, 100), "accuracy": Estimate(*accuracy, 100)}
        metrics = {"accuracy": SimpleNamespace(higher_is_better=True), "loss": SimpleNamespace(higher_is_better=False)}
        return SimpleNamespace(tuned=figures, headline_metric="accuracy", metrics=metrics)

    def compare_runs(children, tasks, reused, metric, ranked):
        assert ([child.label for child in children], metric) == (["new", "old"], "accuracy")
        if paired == "other rows":
            raise RunError("not the same examples")
        return SimpleNamespace(differences=[SimpleNamespace(better=paired)])

    recipe = SimpleNamespace(model_copy=lambda update: update)
    read = {"new": records(new, 0.1), "old": records((0.6, 0.5, 0.7), 0.9)}
    follow = sys.modules["verdicts_follow"]
    run = lambda path: SimpleNamespace(path=path, directory=path, recipe=recipe, without_model=dict)  # noqa: E731
    monkeypatch.setattr(follow, "Run", run)
    monkeypatch.setattr(follow, "EvaluationResult", SimpleNamespace(read=read.get))
    monkeypatch.setattr(follow, "compare_runs", compare_runs)
    assert follow.is_better("new", "old") == better
