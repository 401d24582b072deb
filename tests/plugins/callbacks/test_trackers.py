"""What trackers are told, read back from the event files that TensorBoard reads."""

from pathlib import Path

from expected import raises

from ftengine.api import Failed, Finished, Started, Stepped, Validated, overrides
from ftengine.errors import RecipeError
from ftengine_builtins.callbacks.trackers import TRACKERS, TensorBoard

RECIPE = {"task": {"name": "causal-lm"}, "seed": 0, "augment": [], "train": {"learning_rate": 0.1, "max_steps": None}}
EVALUATION = {"base": {"f1": {"value": 0.5}}, "tuned": {"f1": {"value": 0.75}}, "difference": {}}


def stepped(run, step, **figures):
    return Stepped(run, step, {"step": step, **figures})


def told(run, *events, begun=0):
    """Tell a new TensorBoard callback of a run that begins after `begun` steps."""
    callback = TensorBoard()
    for event in (Started(run, begun, RECIPE), *events):
        getattr(callback, event.moment)(event)


def scalars(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "trackers" / "ftengine"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_figures_become_scalars_at_their_steps(tmp_path):
    told(
        tmp_path,
        stepped(tmp_path, 1, epoch=0, loss=2.5, grad_norm=None),
        stepped(tmp_path, 2, epoch=0, loss=1.5, grad_norm=0.25, flag=True, note="x"),
        Validated(tmp_path, 2, {"step": 2, "validation_loss": 3.0}),
        Finished(tmp_path, 2, EVALUATION),
    )
    found = scalars(tmp_path)
    assert found["loss"] == [(1, 2.5), (2, 1.5)]
    assert found["grad_norm"] == [(2, 0.25)]
    assert found["validation_loss"] == [(2, 3.0)]
    assert found["base/f1"] == [(2, 0.5)]
    assert found["tuned/f1"] == [(2, 0.75)]
    assert not {"step", "flag", "note"} & set(found)


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path):
    steps = [stepped(tmp_path, step, loss=float(step)) for step in (1, 2, 3)]
    told(tmp_path, *steps, Failed(tmp_path, 3, KeyboardInterrupt()))
    told(tmp_path, stepped(tmp_path, 3, loss=30.0), Finished(tmp_path, 3, EVALUATION), begun=2)
    assert scalars(tmp_path)["loss"] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_the_recipe_is_logged_flat_and_once(tmp_path):
    told(tmp_path, Failed(tmp_path, 0, ValueError()))
    told(tmp_path, Failed(tmp_path, 1, ValueError()), begun=1)
    (file,) = (tmp_path / "trackers").rglob("hparams.yml")
    lines = file.read_text().splitlines()
    assert {"task.name: causal-lm", "seed: 0", "train.learning_rate: 0.1", "train.max_steps: 'null'"} <= set(lines)


def test_a_tracker_that_is_not_installed_is_refused_with_the_package():
    TensorBoard().check_options()
    (comet,) = [tracker for tracker in TRACKERS if tracker.name == "comet_ml"]
    with raises(RecipeError, "comet_ml"):
        comet().check_options()
    assert not overrides(comet(), "view_command")
    assert TensorBoard().view_command(Path("runs/a")) == "tensorboard --logdir runs/a/trackers"
