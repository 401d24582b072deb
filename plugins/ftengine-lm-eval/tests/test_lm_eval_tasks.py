"""Task files: what is refused before any data is read, and that nothing of one is executed."""

import json

import pytest
import yaml
from expected import raises

from ftengine.errors import DataError, InputError
from ftengine_lm_eval import LmEval
from ftengine_lm_eval.tasks import check_names, load_tasks, own_tasks

TASK = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["\n"]},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture
def folder(tmp_path):
    """Data for the task."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "What is 1 + 1?", "a": "2"}) + "\n", encoding="utf-8")
    return tmp_path


def task(folder, **changes):
    (folder / "mine.yaml").write_text(yaml.safe_dump(TASK | changes), encoding="utf-8")
    return str(folder / "mine.yaml")


def test_data_is_found_beside_the_task(folder):
    (content,) = own_tasks(task(folder))
    assert content["dataset_kwargs"]["data_files"]["test"] == str(folder / "rows.jsonl")
    assert list(load_tasks([str(folder)])["tasks"]) == ["mine"]


def test_a_file_can_include_another(folder):
    task(folder)
    (folder / "mine.yaml").rename(folder / "base.inc")
    (folder / "other.yaml").write_text("include: base.inc\ntask: other\nnum_fewshot: 0\n", encoding="utf-8")
    (content,) = own_tasks(str(folder / "other.yaml"))
    assert (content["task"], content["doc_to_text"]) == ("other", "{{q}}")


def test_functions_are_refused_and_not_called(folder):
    (folder / "code.py").write_text("raise SystemExit('executed')\n", encoding="utf-8")
    (folder / "mine.yaml").write_text("task: mine\nprocess_docs: !function code.process\n", encoding="utf-8")
    with raises(InputError, "mine.yaml:2"):
        own_tasks(str(folder))


def test_functions_in_an_included_file_are_refused(folder):
    (folder / "base.inc").write_text("process_docs: !function code.process\n", encoding="utf-8")
    (folder / "mine.yaml").write_text("include: base.inc\ntask: mine\n", encoding="utf-8")
    with raises(InputError, "base.inc:1"):
        own_tasks(str(folder))


def test_a_template_cannot_reach_python(folder):
    made = folder / "made"
    reach = "{{ cycler.__init__.__globals__.os.mkdir('" + str(made) + "') }}"
    with raises(DataError, "unsafe"):
        load_tasks([task(folder, doc_to_text=reach)])
    assert not made.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_to_txt": "{{q}}"}, "'doc_to_txt' is not a key of the harness's tasks. Did you mean 'doc_to_text'"),
        ({"unsafe_code": True}, "'unsafe_code' cannot be used here"),
        ({"metric_list": [{"metric": "someone/metric"}]}, "'someone/metric' is not a metric of the harness itself"),
        ({"metric_list": [{"metric": "exact_match", "hf_evaluate": True}]}, "'exact_match' is not a metric"),
        ({"generation_kwargs": {"custom_generate": "someone/code"}}, "'custom_generate' cannot be used here"),
        ({"dataset_path": "pandas"}, "dataset_path 'pandas' cannot be used here"),
        ({"dataset_path": "./rows"}, "dataset_path './rows' cannot be used here"),
        ({"dataset_kwargs": {"data_files": "gone.jsonl"}}, "there is no 'gone.jsonl'"),
        ({"dataset_kwargs": {"features": "x"}}, "dataset_kwargs: 'features' cannot be used here"),
        ({"task": ["one", "two"]}, "groups are not read from files"),
    ],
)
def test_what_cannot_be_used_is_refused(changes, message, folder):
    with pytest.raises(InputError) as raised:
        own_tasks(task(folder, **changes))
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(folder / "mine.yaml"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["[1, 2]", "task: [", "task: mine\ninclude: mine.yaml\n", "other: 1\n"])
def test_files_that_hold_no_task_are_refused(content, tmp_path):
    (tmp_path / "mine.yaml").write_text(content, encoding="utf-8")
    with raises(InputError, str(tmp_path)):
        own_tasks(str(tmp_path))


def test_a_place_without_files_is_refused(tmp_path):
    with raises(InputError, "task file"):
        check_names([f"{tmp_path}/"])


def test_data_that_cannot_be_read_is_reported_in_one_line(folder):
    (folder / "rows.jsonl").write_text("{broken\n", encoding="utf-8")
    with raises(DataError, "mine.yaml") as raised:
        load_tasks([task(folder)])
    assert "\n" not in str(raised.value)


def test_several_processes_are_refused(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with raises(InputError, "one process"):
        LmEval(LmEval.Config(tasks=[task(folder)])).benchmarks(None)
