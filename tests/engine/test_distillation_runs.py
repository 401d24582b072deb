"""Runs that learn a teacher's distributions along their own answers."""

import json
import shutil

import pytest
import tiny
from docs_commands import ROOT
from expected import raises
from processes import together, train
from runs import curve, interrupt

from ftengine import Recipe, fine_tune, load_run, plan
from ftengine.errors import DataError, InputError, RecipeError
from ftengine.run.directory import DRAWS, RunDirectory
from ftengine_builtins.tasks import teachers

SYSTEM = "You shout, loudly and often."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distillation")
    words = ("red", "green", "fox", "house", "no", "yes", "the", "dog")
    rows = [{"prompt": f"Say {words[i % 8]} {i}", "completion": f"{words[-i % 8]}"} for i in range(48)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def build(folder, llama_folder):
    def build(output, task=None, model=llama_folder, strategy="full", evaluate=(), **train):
        return Recipe.make(
            {
                "model": {"source": str(model)},
                "task": {
                    "name": "distillation",
                    "max_new_tokens": 3,
                    **({"teacher_system_prompt": SYSTEM} if task is None else task),
                },
                "data": {"train": str(folder / "rows.jsonl"), "validation": 0.3},
                "strategy": strategy,
                "train": {"max_steps": 2, "batch_size": 4, "precision": "float32", "learning_rate": 0.003, **train},
                "evaluate": list(evaluate),
                "evaluation": {"training_sample": None, "resamples": 100, "answers": None, "reuse_base": False},
                "output": str(output),
            }
        )

    return build


@pytest.fixture(scope="module")
def learnt(build, tmp_path_factory):
    output = tmp_path_factory.mktemp("learnt") / "run"
    strategy = {"name": "lora", "dropout": 0.0}
    return fine_tune(
        build(output, strategy=strategy, max_steps=24, epochs=4, evaluate=["perplexity"], learning_rate=0.01)
    )


def draws(run):
    return RunDirectory(run.path).steps_in(DRAWS)


def test_the_divergence_from_the_teacher_falls(learnt):
    divergences = [line["teacher_kl"] for line in learnt.metrics if "teacher_kl" in line]
    assert len(divergences) == 24
    assert sum(divergences[-4:]) < 0.7 * sum(divergences[:4])
    base, tuned = (learnt.evaluation[side]["teacher_kl"]["value"] for side in ("base", "tuned"))
    assert tuned < 0.7 * base
    assert learnt.evaluation["difference"]["teacher_kl"]["value"] < 0


def test_figures_are_of_the_drawn_answers(learnt):
    lines = draws(learnt)
    for step in (line for line in learnt.metrics if "teacher_kl" in line):
        own = [line for line in lines if line["step"] == step["step"]]
        assert step["answers"] == step["examples"] == len(own) > 0
        assert step["answer_tokens"] == pytest.approx(sum(line["tokens"] for line in own) / len(own))
        assert step["trained_tokens"] == sum(line["tokens"] for line in own)
        assert step["loss"] == pytest.approx(step["teacher_kl"])
        assert step["sampler_gap"] < 1e-4
        assert all(line["own"] for line in own)


def test_a_reopened_run_is_measured_against_the_same_teacher(learnt):
    """Its base teaches, not the tuned model; perplexity is of the rows' own answers."""
    again = load_run(learnt.path).evaluate()
    for side in ("base", "tuned"):
        for name in ("teacher_kl", "perplexity"):
            assert again[side][name]["value"] == pytest.approx(learnt.evaluation[side][name]["value"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", [None, {"teacher_system_prompt": SYSTEM, "lmbda": 0.5, "beta": 0.5}], ids=["own", "mixed"]
)
def test_a_killed_run_goes_on_as_though_it_had_not_been(build, tmp_path, task):
    whole = fine_tune(build(tmp_path / "whole", task, max_steps=4))
    recipe = build(tmp_path / "killed", task, max_steps=4, checkpoint_every=2)
    interrupt(recipe, after=3)
    shutil.copytree(tmp_path / "killed", tmp_path / "kept")
    resumed = fine_tune(recipe, resume=True)
    assert curve(resumed.path) == curve(whole.path)
    assert draws(resumed) == draws(whole)
    if task:
        assert {line["own"] for line in draws(whole)} == {True, False}


@pytest.mark.slow
def test_micro_batches_and_two_processes_equal_one_batch(build, tmp_path):
    whole = fine_tune(build(tmp_path / "whole"))
    parts = fine_tune(build(tmp_path / "parts", batch_size=2, accumulate=2))
    (tmp_path / "two.yaml").write_text(json.dumps(build(tmp_path / "two", batch_size=2).resolved()))
    together(tmp_path, train, str(tmp_path / "two.yaml"))
    for run in (parts, load_run(tmp_path / "two")):
        assert [line["answer"] for line in draws(run)] == [line["answer"] for line in draws(whole)]
        for key in ("loss", "teacher_kl", "entropy", "grad_norm"):
            curves = [[line[key] for line in each.metrics if "teacher_kl" in line] for each in (run, whole)]
            assert curves[0] == pytest.approx(curves[1], rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_a_run_teaches_by_its_tuned_model_and_is_loaded_once(build, learnt, tmp_path, monkeypatch):
    loads = list[str]()
    teacher = teachers.TeacherSource.teacher.func
    monkeypatch.setattr(
        teachers.TeacherSource.teacher, "func", lambda source: loads.append(source.source) or teacher(source)
    )
    run = fine_tune(build(tmp_path / "run", {"teacher": str(learnt.path)}, max_steps=4))
    assert loads == [str(learnt.path)]
    assert run.metrics[0]["teacher_kl"] > 1e-5
    [base] = [load_run(learnt.path).open_model().module]
    assert any("lora" in name for name, _ in base.named_parameters())


def test_a_plan_draws_and_warns_of_a_teacher_that_teaches_nothing(build, llama_folder, tmp_path):
    shutil.copytree(llama_folder, tmp_path / "copy")
    planned = plan(build(tmp_path / "run", {"teacher": str(tmp_path / "copy")}))
    assert (planned.drawing["answers"], planned.steps["answers_a_row"]) == (4, 1)
    assert any("teacher" in warning and "KL" in warning for warning in planned.warnings)


def exchanged(model, folder):
    """Return a copy of a model whose tokenizer has exchanged two ids."""
    shutil.copytree(model, folder / "exchanged")
    file = folder / "exchanged" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))
    return folder / "exchanged"


def test_what_cannot_be_is_refused_before_weights_are_read(build, llama_folder, tmp_path, no_weights):
    cases = [
        (llama_folder, {}, RecipeError, "teacher_system_prompt", "nothing to learn from"),
        (llama_folder, {"teacher": str(llama_folder)}, RecipeError, "task.teacher", "same prompt"),
        (llama_folder, {"teacher": str(tmp_path / "gone")}, InputError, "task.teacher", "gone"),
        (llama_folder, {"teacher": str(exchanged(llama_folder, tmp_path))}, RecipeError, "task.teacher", "vocabulary"),
        (
            llama_folder,
            {"teacher_system_prompt": SYSTEM, "chat_template": "never"},
            RecipeError,
            "chat_template",
            "place",
        ),
        (llama_folder, {"teacher_system_prompt": "x " * 600}, DataError, "teacher's prompt", "512"),
    ]
    for model, task, kind, *facts in cases:
        with raises(kind, *facts):
            plan(build(tmp_path / "run", task, model=model), measure=False)


def test_a_bert_teaches_nothing(build, tmp_path):
    with raises(InputError, "task.teacher"):
        plan(build(tmp_path / "run", {"teacher": str(tiny.tiny_bert(tmp_path / "bert"))}), measure=False)


@pytest.mark.slow
def test_the_example_is_a_recipe_that_runs(folder, llama_folder, tmp_path):
    rows = str(folder / "rows.jsonl")
    changes = {
        "model.source": llama_folder,
        "data.train": rows,
        "data.test": rows,
        "data.leaks": "warn",
        "evaluation.forgetting": rows,
        "train.max_steps": 1,
        "task.max_new_tokens": 2,
        "output": tmp_path / "run",
    }
    recipe = Recipe.read(
        ROOT / "examples" / "pirate" / "pirate.yaml", [f"{key}={value}" for key, value in changes.items()]
    )
    run = fine_tune(recipe)
    assert run.metrics[0]["teacher_kl"] > 0
    [probe] = [probe for probe in run.evaluation["probes"] if probe["kind"] == "forgetting"]
    assert "perplexity" in probe["tuned"]
