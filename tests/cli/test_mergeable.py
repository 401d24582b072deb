"""`train` proposes, and `merge` refuses, by what the strategy can do, before any model is loaded."""

from ftengine import load_run


def test_a_mergeable_run_proposes_merge(trained, run):
    assert f"ftengine merge {run} OUT" in trained.stdout
    assert load_run(run).mergeable


def test_another_neither_proposes_it_nor_loads_a_model_to_refuse_it(ftengine, recipe, tmp_path, request):
    folder = tmp_path / "run"
    settings = ("--set", "strategy={name: adapter}", "--set", "train.max_steps=1", "--set", f"output={folder}")
    text = ftengine("train", recipe, *settings, "--set", "callbacks=[tensorboard]").stdout
    assert "ftengine predict" in text
    assert "ftengine merge" not in text
    assert not load_run(folder).mergeable
    assert list((folder / "trackers").rglob("events.out.tfevents.*"))
    request.getfixturevalue("no_weights")
    assert "cannot be merged into its base" in ftengine("merge", folder, tmp_path / "out", code=2).stderr


def test_a_plan_says_what_its_memory_is_of_and_what_a_strategy_without_patterns_does(ftengine, recipe):
    text = " ".join(ftengine("plan", recipe, "--set", "strategy={name: prompt, virtual_tokens: 7}").stdout.split())
    assert "Python and its libraries (" in text
    assert "prompt: virtual_tokens 7, init vocabulary" in text


def test_a_missing_tracker_is_refused_before_data_is_read(ftengine, recipe, tmp_path):
    settings = ("--set", "callbacks=[mlflow]", "--set", "data.train=no.jsonl", "--set", f"output={tmp_path / 'x'}")
    error = ftengine("train", recipe, *settings, code=2).stderr
    assert "pip install mlflow" in error
