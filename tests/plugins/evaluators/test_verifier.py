"""Answers that a function judges: what is counted, what goes wrong in it, and the estimate of pass@k."""

import itertools
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from expected import raises
from pydantic import ValidationError

from ftengine.errors import DataError, RecipeError
from ftengine.evaluation.plan import how_sampled
from ftengine.testing import check_results
from ftengine_builtins.evaluators import Verifier
from ftengine_builtins.evaluators.verifier import pass_at_k
from ftengine_builtins.scoring_process import file_of, files_with

SCORE = """
import os, time

print("on loading")


def right(answer, wanted, after=0):
    print("nobody reads this")
    if answer == "raise":
        return 1 / 0
    if answer == "sleep":
        time.sleep(60)
    if answer == "exit":
        os._exit(3)
    if answer == "text":
        return "yes"
    if answer == "half":
        return 0.5
    return answer == wanted


def none():
    return True
"""


@pytest.fixture
def function(tmp_path):
    (tmp_path / "score.py").write_text(SCORE)
    return f"{tmp_path / 'score.py'}:right"


def verifier(function, **options):
    return Verifier(Verifier.Config(function=function, **options))


def test_answers_pass_fail_raise_or_take_too_long_and_none_ends_the_run(function, scored):
    one = verifier(function, timeout=0.4)
    assert one.columns == {"wanted", "after"}
    answers = ["4", "5", "raise", "sleep", "4", "exit", "text", "4", "half"]
    began = time.perf_counter()
    found = scored(one, [{"completion": answer, "wanted": "4", "after": None} for answer in answers])
    assert time.perf_counter() - began < 20
    assert found.rows["outcomes"].ravel().tolist() == [1, 0, 2, 3, 1, 2, 2, 1, 2]
    assert found.scores == {"pass_at_1": 3 / 9}
    facts, _ = found.details()
    assert (facts["answers"], facts["errors"], facts["timeouts"]) == (9, 4, 1)
    assert "ZeroDivisionError" in facts["error"]
    assert one.trials(found.rows) == {"pass_at_1": 9}


def test_scores_between_are_graded_only_where_asked(function, scored):
    rows = [{"completion": answer, "wanted": "4", "after": None} for answer in ("4", "half", "raise")]
    found = scored(verifier(function, passes_at=0.5), rows)
    assert found.scores == {"pass_at_1": 2 / 3, "mean_score": 0.75}


def test_pass_at_k_is_the_share_of_choices_of_k_that_hold_one_that_passes():
    n = 6
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        choices = list(itertools.combinations(range(n), k))
        assert pass_at_k(n, k)[c] == pytest.approx(sum(min(one) < c for one in choices) / len(choices))


def test_several_answers_are_asked_for_and_their_figures_are_means_over_prompts(function, scored):
    one = verifier(function, samples=4, k=[1, 4])
    assert one.reads == {"samples"}
    assert one.sampling == {"samples": 4, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 128}
    assert not one.generation
    drawn = [["4", "4", "5", "5"], ["5"] * 4, ["4"] * 4]
    found = scored(one, [{"samples": answers, "wanted": "4", "after": None} for answers in drawn])
    assert found.scores == pytest.approx({"pass_at_1": 0.5, "pass_at_4": 2 / 3})
    judged = one.score_examples(found.rows)
    assert judged.score.tolist() == [0.5, 0, 1]
    assert np.array_equal(judged.right, [math.nan, 0, 1], equal_nan=True)
    assert one.trials(found.rows) == {"pass_at_4": 3}  # of which any four are all


def test_pass_at_k_is_of_as_many_answers_as_there_are(function, scored):
    rows = [{"samples": ["4", "5", "5", "5"], "wanted": "4", "after": None}]
    assert scored(verifier(function, samples=2), rows).scores == {"pass_at_1": 0.25}


def test_what_the_recipe_and_rows_say_is_looked_at_before_anything_is_asked(function, tmp_path):
    with raises(RecipeError, "function"):
        Verifier().set_labels("a-task", None)
    one = verifier(function)
    one.check_row({"wanted": "4"})
    with raises(DataError, "`wanted`"):
        one.check_row({"wanted": None})
    for wrong, said in (("score.py:rihgt", "'right'"), ("scroe.py:right", "scroe.py"), ("score.py:none", "first")):
        with raises(RecipeError, said):
            verifier(f"{tmp_path / wrong}").check_row({})
    (tmp_path / "broken.py").write_text("import nowhere\n\n\ndef right(answer):\n    return True\n")
    broken = verifier(f"{tmp_path / 'broken.py'}:right")
    broken.check_row({})  # which executes nothing
    with raises(RecipeError, "ModuleNotFoundError", "nowhere"):
        broken.start()
    for options in ({"k": [2]}, {"samples": 2, "temperature": 0}, {"k": [0]}):
        with pytest.raises(ValidationError):
            Verifier.Config(function=function, **options)
    with pytest.raises(ValidationError):
        Verifier.Config(function="os:system")


def test_a_plugin_names_a_function_of_its_own(tmp_path, monkeypatch, scored):
    (tmp_path / "acme_scores.py").write_text("def long(answer):\n    return len(answer) > 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")

    class Long(Verifier):
        """Answers that are long."""

        name = "long"
        own = "acme_scores:long"

    one = Long()
    assert one.runs_code() is None
    assert scored(one, [{"completion": "yes"}, {"completion": "no"}]).scores == {"pass_at_1": 0.5}


CODE = {
    "score.py": "from checks.rules import ok\nimport words.long\n",
    "checks/__init__.py": "",
    "checks/rules.py": "from . import least\n",
    "checks/least.py": "from .deep.end import END\n",
    "checks/deep/end.py": "from ..other import X\n",
    "checks/other.py": "",
    "checks/unused.py": "",
    "words/long.py": "import checks.nul, os, nowhere\nfrom .... import outside\n",
    "checks/nul.py": "\0",
    "acme_checks/__init__.py": "import acme_begin",
    "acme_checks/score.py": "from acme_checks.least import LEAST\n",
    "acme_checks/least.py": "",
    "acme_begin.py": "",
}


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("score.py", [name for name in CODE if "unused" not in name and "acme" not in name]),
        ("acme_checks.score", [name for name in CODE if "acme" in name]),
        ("site-packages/acme_checks.score", [name for name in CODE if "acme_checks" in name]),  # packages beside it
    ],
)
def test_the_code_of_a_function_is_all_that_its_imports_reach(tmp_path, monkeypatch, place, found):
    """Modules of packages, by their names or relative ones; what is no Python, or cannot be read, ends nothing."""
    folder, _, place = f"{tmp_path}/{place}".rpartition("/")
    for name, code in CODE.items():
        file = Path(folder, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme_checks"]:
        monkeypatch.delitem(sys.modules, name)
    target = f"{folder}/{place}:right" if place.endswith(".py") else f"{place}:right"
    reached = files_with(file_of(target), target)
    assert {str(one.relative_to(folder)) for one in reached} == set(found)


def test_a_file_of_code_that_cannot_be_read_ends_nothing(tmp_path):
    assert files_with(tmp_path / "gone.py", f"{tmp_path / 'gone.py'}:right") == []  # there is nothing to hash
    (tmp_path / "nul.py").write_text("\0")
    with raises(RecipeError, "nul.py", "no Python"):
        verifier(f"{tmp_path / 'nul.py'}:right").check_row({})


def test_it_conforms(tmp_path):
    (tmp_path / "score.py").write_text("def right(answer):\n    return 'fox' in answer\n")
    results = check_results(Verifier, options={"function": f"{tmp_path / 'score.py'}:right", "samples": 2})
    assert [(one.check, one.reason) for one in results if one.outcome == "failed"] == []
    assert any(one.outcome == "passed" for one in results)


def test_evaluators_that_read_the_same_answers_ask_for_the_same(function):
    class Other(Verifier):
        name = "other"

    def asked(one, **own):
        two = [verifier(function, samples=4, k=[1, 4]), Other(Other.Config(function=function, **one))]
        return how_sampled([*two, Verifier()], own)

    assert asked({"samples": 4, "temperature": 1.0})["samples"] == 4
    assert asked({"samples": 4}, top_p=0.9)["top_p"] == 0.9
    for one, own, told in (
        ({"samples": 8}, {}, "samples"),
        ({"samples": 4, "temperature": 0.2}, {}, "temperature"),
        ({"samples": 4, "temperature": 1.0}, {"temperature": 0.5}, "evaluation.generate"),
    ):
        with raises(RecipeError, "'other'", told):
            asked(one, **own)
    assert how_sampled([Verifier()], {"top_p": 0.5}) == {}
    plain = type("Plain", (Verifier,), {"name": "plain", "sampling": property(lambda self: {"samples": 4})})()
    assert how_sampled([verifier(function, samples=4, k=[1, 4]), plain], {})["samples"] == 4


@pytest.mark.parametrize("parameters", ["answer, wanted, /", "answer, /, wanted"])
def test_parameters_that_cannot_be_named_are_refused_before_anything_is_asked(tmp_path, parameters):
    (tmp_path / "score.py").write_text(f"def right({parameters}):\n    return True\n")
    one = verifier(f"{tmp_path}/score.py:right")
    if parameters.endswith("/"):
        with raises(RecipeError, "by name"):
            one.check_row({"wanted": "4"})
    else:
        one.check_row({"wanted": "4"})
