"""The harness in whole runs: its figures are those of the merged model measured by hand, and the verdict has them."""

import json

import pyarrow.parquet as pq
import pytest
import yaml
from expected import raises
from tiny import tiny_llama

from ftengine import Recipe, fine_tune, load_run
from ftengine.errors import InputError

pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """A folder with tasks of choices and of generations, and their data."""
    folder = tmp_path_factory.mktemp("benchmarks")
    rows = [{"q": f"What is {a} + {b}?", "good": f"It is {a + b}.", "bad": "Dogs."} for a in range(5) for b in range(5)]
    (folder / "sums.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "sums.jsonl"}},
        "test_split": "test",
        "doc_to_text": "{{q}}",
    }
    choose = {
        "task": "choose",
        "output_type": "multiple_choice",
        "doc_to_choice": ["{{good}}", "{{bad}}"],
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    write = {
        "task": "write",
        "output_type": "generate_until",
        "doc_to_target": "{{good}}",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    score = {**write, "task": "score", "metric_list": [{"metric": "bleu", "higher_is_better": True}]}
    for task in (choose, score, write):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(shared | task), encoding="utf-8")
    return folder


def recipe(model, answers, output, **more):
    return Recipe.make(
        {
            "model": {"source": str(model)},
            "task": "causal-lm",
            "data": {"train": str(answers), "validation": 0.25},
            "strategy": {"name": "lora", "rank": 4},
            "train": {"epochs": 6, "batch_size": 4, "learning_rate": 0.01, "precision": "float32"},
            "evaluation": {"resamples": 100},
            "output": str(output),
            **more,
        }
    )


@pytest.fixture(scope="module")
def sensitive(tmp_path_factory):
    """A tiny Llama with weights so large that its answers differ."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama", initializer_range=0.2)


@pytest.fixture
def run(sensitive, answers, benchmarks, tmp_path):
    asked = {"name": "lm-eval", "tasks": [str(benchmarks)], "num_fewshot": 1}
    return fine_tune(recipe(sensitive, answers, tmp_path / "run", evaluate=[asked]))


def asked_of(run):
    """What a run's evaluation.json has of each of the harness's tasks."""
    return {one["data"]: one for one in run.evaluation["probes"] if one["kind"] == "benchmark"}


def by_hand(model, benchmarks, **options):
    """Measure a transformers folder as the harness's documentation has it."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    specs = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(benchmarks.glob("*.yaml"))]
    for spec in specs:
        spec["dataset_kwargs"]["data_files"]["test"] = str(benchmarks / "sums.jsonl")
    manager = TaskManager(include_defaults=False)
    found = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=8)
    return simple_evaluate(found, tasks=specs, task_manager=manager, **options)


def test_figures_are_those_of_the_harness_by_hand(run, sensitive, benchmarks, tmp_path):
    run.merge(tmp_path / "merged")
    found, places = asked_of(run), list(asked_of(run))
    for side, model in (("base", sensitive), ("tuned", tmp_path / "merged")):
        wanted = by_hand(model, benchmarks, num_fewshot=1)
        for task, metric in (("choose", "acc"), ("write", "exact_match")):
            assert found[task]["examples"] == 25
            assert found[task][side][f"{metric},none"]["value"] == wanted["results"][task][f"{metric},none"]
            file = run.path / "predictions" / f"benchmark-{places.index(task)}-{side}.parquet"
            each = pq.read_table(file)[f"{metric},none"].to_pylist()
            assert each == [sample[metric] for sample in wanted["samples"][task]]
        assert found["score"][side]["bleu,none"]["value"] == wanted["results"]["score"]["bleu,none"]
    choose = found["choose"]
    assert choose["base"]["acc,none"]["value"] != choose["tuned"]["acc,none"]["value"]  # else any model would do
    assert choose["difference"]["acc,none"]["better"] is True
    assert choose["tuned"]["acc,none"]["low"] < choose["tuned"]["acc,none"]["value"]
    assert found["score"]["base"]["bleu,none"]["low"] is None  # no mean of examples


def test_the_verdict_tells_of_benchmarks(run):
    (finding,) = [one for one in run.verdict.findings if one.source == "benchmarks" and "choose acc" in one.text]
    assert finding.level == "good"
    assert "is better than its base at choose acc" in finding.text
    stored = json.loads((run.path / "verdict.json").read_text(encoding="utf-8"))
    assert any(one["source"] == "benchmarks" for one in stored["findings"])
    assert "Benchmark" in (run.path / "report.html").read_text(encoding="utf-8")
    again = load_run(run.path)
    assert again.evaluate()["probes"] == run.evaluation["probes"]
    with raises(InputError, "the models itself"):
        again.evaluate(evaluators=[{"name": "lm-eval", "tasks": ["arc_easy"]}])


def test_questions_about_one_text_are_one_group(sensitive, answers, benchmarks, tmp_path):
    rows = [
        json.loads(line) | {"idx": {"paragraph": i // 5}} for i, line in enumerate((benchmarks / "sums.jsonl").open())
    ]
    (tmp_path / "sums.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    (tmp_path / "choose.yaml").write_text((benchmarks / "choose.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    asked = {"name": "lm-eval", "tasks": [str(tmp_path / "choose.yaml")]}
    found = asked_of(fine_tune(recipe(sensitive, answers, tmp_path / "run", evaluate=[asked])))["choose"]
    figure = found["tuned"]["acc,none"]
    assert (found["examples"], figure["n"], figure["rows"]) == (25, 5, 25)
    assert found["difference"]["acc,none"]["test"] != "mcnemar"  # whose tosses are independent


def test_the_run_itself_stays_as_it_is(run, sensitive, answers, tmp_path):
    """Measuring in the midst of a run changes neither weights nor figures."""
    without = fine_tune(recipe(sensitive, answers, tmp_path / "without"))
    assert run.evaluation["tuned"] == without.evaluation["tuned"]
    assert run.evaluation["difference"] == without.evaluation["difference"]
    name = "adapter_model.safetensors"
    assert (run.trained / name).read_bytes() == (without.trained / name).read_bytes()


@pytest.mark.parametrize(
    "strategy", [{"name": "full"}, {"name": "prompt", "virtual_tokens": 4}], ids=["full", "prompt"]
)
def test_other_strategies_are_measured_too(strategy, sensitive, answers, benchmarks, tmp_path):
    asked = {"name": "lm-eval", "tasks": [str(benchmarks)], "num_fewshot": 1, "limit": 12}
    run = fine_tune(recipe(sensitive, answers, tmp_path / "run", evaluate=[asked], strategy=strategy))
    found = asked_of(run)
    assert {name: one["examples"] for name, one in found.items()} == {"choose": 12, "score": 12, "write": 12}
    said = {}
    for side in ("base", "tuned"):
        for i, task in enumerate(found):
            said[side, task] = pq.read_table(run.path / "predictions" / f"benchmark-{i}-{side}.parquet").to_pydict()
    assert any(said["base", task] != said["tuned", task] for task in found)  # else any model would do
    if strategy["name"] == "full":  # whose trained part is a transformers folder
        wanted = by_hand(run.trained, benchmarks, num_fewshot=1, limit=12)
        for task, metric in (("choose", "acc"), ("write", "exact_match")):
            assert said["tuned", task][f"{metric},none"] == [sample[metric] for sample in wanted["samples"][task]]


def test_unknown_tasks_are_refused_before_weights_are_read(llama_folder, answers, tmp_path, no_weights):
    asked = {"name": "lm-eval", "tasks": ["arc_easyy"]}
    with raises(InputError, "evaluate.lm-eval", "'arc_easy'"):
        fine_tune(recipe(llama_folder, answers, tmp_path / "run", evaluate=[asked]))


def test_a_classifier_is_refused_before_weights_are_read(bert_folder, reviews, benchmarks, tmp_path, no_weights):
    asked = {"name": "lm-eval", "tasks": [str(benchmarks)]}
    made = recipe(bert_folder, reviews, tmp_path / "run", evaluate=[asked], task="text-classification")
    with raises(InputError, "sequence-classification"):
        fine_tune(made)


def test_three_distributions_work_together_in_one_recipe(answers, benchmarks, tmp_path):
    """A base in 4 bits, a method of PEFT, an 8-bit optimizer, and the harness."""
    model = tiny_llama(tmp_path / "llama", initializer_range=0.2, hidden_size=64)
    content = recipe(model, answers, tmp_path / "run").resolved()
    content["model"]["loader"] = {"name": "bitsandbytes", "bits": 4}
    content["strategy"] = {"name": "peft-lora", "r": 4}
    content["train"]["optimizer"] = "adamw-8bit"
    content["evaluate"] = [{"name": "lm-eval", "tasks": [str(benchmarks / "choose.yaml")]}]
    run = fine_tune(Recipe.make(content))
    measured = asked_of(run)
    assert measured.keys() == {"choose"}
    assert {finding.source for finding in run.verdict.findings} >= {"benchmarks"}
