"""What trackers are told, read back from the event files that TensorBoard reads."""

import pytest

from ftengine.api import SilentListener
from ftengine.errors import RecipeError
from ftengine.training.trackers import Trackers, check_trackers, flat, open_trackers

RECIPE = {"task": {"name": "causal-lm"}, "seed": 0, "augment": [], "train": {"learning_rate": 0.1, "max_steps": None}}


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_lines_become_scalars_at_their_steps(tmp_path):
    trackers = open_trackers(["tensorboard"], tmp_path, RECIPE)
    trackers.log({"step": 1, "epoch": 0, "loss": 2.5, "grad_norm": None})
    trackers.log({"step": 2, "epoch": 0, "loss": 1.5, "grad_norm": 0.25})
    trackers.log({"step": 2, "epoch": 1, "validation_loss": 3.0})
    trackers.evaluated({"base": {"f1": {"value": 0.5}}, "tuned": {"f1": {"value": 0.75}}, "difference": {}})
    trackers.finish()
    found = scalars(tmp_path / "trackers" / "ftengine")
    assert found["loss"] == [(1, 2.5), (2, 1.5)]
    assert found["grad_norm"] == [(2, 0.25)]
    assert found["validation_loss"] == [(2, 3.0)]
    assert found["base/f1"] == [(2, 0.5)]
    assert found["tuned/f1"] == [(2, 0.75)]
    assert "step" not in found


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path):
    before = open_trackers(["tensorboard"], tmp_path, RECIPE)
    for step in (1, 2, 3):
        before.log({"step": step, "loss": float(step)})
    before.finish()
    after = open_trackers(["tensorboard"], tmp_path, RECIPE, step=2)
    after.log({"step": 3, "loss": 30.0})
    after.finish()
    assert scalars(tmp_path / "trackers" / "ftengine")["loss"] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_the_recipe_is_told_flat_and_once(tmp_path):
    assert flat(RECIPE) == {
        "task.name": "causal-lm",
        "seed": 0,
        "augment": "[]",
        "train.learning_rate": 0.1,
        "train.max_steps": "null",
    }
    open_trackers(["tensorboard"], tmp_path, RECIPE).finish()
    open_trackers(["tensorboard"], tmp_path, RECIPE, step=1).finish()
    (told,) = (tmp_path / "trackers").rglob("hparams.yml")
    assert "train.learning_rate: 0.1" in told.read_text()


def test_without_trackers_nothing_is_written(tmp_path):
    trackers = open_trackers([], tmp_path, RECIPE)
    trackers.log({"step": 1, "loss": 1.0})
    trackers.finish()
    assert list(tmp_path.iterdir()) == []
    assert Trackers().started == []


def test_unknown_and_missing_trackers_are_one_early_error():
    with pytest.raises(RecipeError, match=r"no tracker named 'tensorbord'.*wandb.*Did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    with pytest.raises(RecipeError, match=r"'comet_ml' is not installed.*pip install comet-ml.*installed: tensorboard"):
        check_trackers(["tensorboard", "comet_ml"])
    check_trackers(["tensorboard"])


def test_trackers_registered_with_accelerate_are_known(monkeypatch, tmp_path):
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

    class Ear(GeneralTracker):
        name = "ear"
        requires_logging_directory = False
        main_process_only = True

        def __init__(self, project, **options):
            super().__init__()
            self.heard = []

        @property
        def tracker(self):
            return self.heard

        def store_init_configuration(self, values):
            self.heard.append(values["task.name"])

        def log(self, values, step, **kwargs):
            self.heard.append((step, dict(values)))

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "ear", Ear)
    check_trackers(["ear"])
    trackers = open_trackers(["ear", "ear"], tmp_path, RECIPE)
    trackers.log({"step": 4, "loss": 1.0, "note": "x", "flag": True})
    (ear,) = trackers.started
    assert ear.heard == ["causal-lm", (4, {"loss": 1.0})]


class Service:
    """A tracker that cannot be reached from its second call on."""

    name = "service"

    def __init__(self):
        self.heard = []

    def log(self, values, step):
        if self.heard:
            raise ConnectionError("no route")
        self.heard.append(step)

    def finish(self):
        raise AssertionError("it is told no more")


def test_a_tracker_that_fails_is_left_out_and_said_so_once():
    class Listener(SilentListener):
        said = []  # noqa: RUF012

        def message(self, text):
            self.said.append(text)

    service = Service()
    trackers = Trackers([service], Listener())
    for step in (1, 2, 3):
        trackers.log({"step": step, "loss": 1.0})
    trackers.evaluated({"base": {}, "tuned": {"f1": {"value": 1.0}}, "difference": {}})
    trackers.finish()
    assert service.heard == [1]
    assert Listener.said == ["tracker 'service' failed and is left out from here on: no route"]


def test_trackers_end_where_training_fails(monkeypatch, bert_folder, tmp_path):
    from ftengine import Recipe
    from ftengine.engine import fine_tune as engine
    from ftengine.training.loop import Trainer

    ended = []

    class Ended(Trackers):
        def finish(self):
            ended.append(True)

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "match {i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(12)))
    recipe = Recipe.make(
        {
            "model": {"source": str(bert_folder)},
            "task": "text-classification",
            "data": {"train": str(rows), "validation": None},
            "strategy": "full",
            "output": str(tmp_path / "run"),
        }
    )
    monkeypatch.setattr(engine, "open_trackers", lambda *args: Ended())
    monkeypatch.setattr(Trainer, "train", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.fine_tune(recipe)
    assert ended == [True]
