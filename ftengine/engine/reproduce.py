"""Training a run again from its records, and comparing the two runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ftengine.engine.compare import compare_runs
from ftengine.engine.experiment import Experiment
from ftengine.engine.export import require_as_finished
from ftengine.engine.fine_tune import train
from ftengine.engine.finished import Run
from ftengine.engine.prepared_data import prepare_data
from ftengine.engine.prepared_model import prepare_model
from ftengine.engine.subprocess_runs import Child
from ftengine.equivalence import differing
from ftengine.evaluation import holm, is_beyond_chance
from ftengine.evaluation.stored import stored
from ftengine.model import read_tensors
from ftengine.parallel.heartbeat import heartbeat
from ftengine.run.comparison import PairDifference
from ftengine.run.directory import RunDirectory
from ftengine.run.phases import TimedPhases
from ftengine.run.recipe import Recipe
from ftengine.run.records import AuditResult, Environment, EvaluationResult
from ftengine.run.reproduction import Outcome, Reproduction, changes_of_data, changes_of_environment

NEW, OLD = "again", "recorded"


def reproduce(run: Run, output: str | Path) -> Reproduction:
    """Train a finished run again and compare the results.

    If its data or base has changed, nothing is trained, since that would be another run.

    Args:
        output: a folder for the new run; it must not exist or be empty.

    Raises:
        RunError: `output` is in use, or a record or the trained part of the run is missing or has changed.
        InputError: the data or model is gone, or code that the run names is not trusted.
        TrainingError: training cannot go on.
    """
    again = RunDirectory(output)
    again.require_free("another with --output DIR")
    recipe = Recipe.read(run.path / "recipe.yaml").model_copy(update={"output": str(again.path)})
    require_as_finished(run)
    run.without_model(check_source=True)  # whatever its model is loaded by is to be trusted
    run.require_trusted_code()
    with heartbeat():
        phases = TimedPhases(run.listener)
        data = prepare_data(Experiment.open(recipe, run.registry, phases, day=run.day))
        now = {name: split.content for name, split in data.encoded.items()}
        if changed := changes_of_data(AuditResult.read(run.directory).contents, now):
            return Reproduction(str(run.path), None, "different", tuple(changed))
        model = prepare_model(data)
        differences = tuple(changes_of_environment(Environment.read(run.directory), model.environment()))
        if any(difference.kind == "base" for difference in differences):
            return Reproduction(str(run.path), None, "different", differences)
        train(model, again, False, phases)
    outcome, metric, difference = compare(run, Run(again.path, registry=run.registry, trust_code=run.trust_code))
    step, same = (
        None if outcome == "equal" else _first_step(run.directory, again),
        _same_weights(run.trained, again.trained),
    )
    return Reproduction(str(run.path), str(again.path), outcome, differences, step, metric, difference, same)


def compare(run: Run, again: Run) -> tuple[Outcome, str | None, PairDifference | None]:
    """Compare two runs on the same data; return the outcome, and the metric and difference that decided it.

    "different": some metric differs beyond chance (Holm); "within": the interval of the headline metric's difference
    is nearer to zero than the gain of the recorded run over its base; "undecided" otherwise.
    """
    evaluation = EvaluationResult.read(run.directory)
    split, headline = evaluation.split, evaluation.headline_metric
    tables = [] if split is None else [stored(side.directory, split, "tuned") for side in (again, run)]
    if _same_weights(run.trained, again.trained) and (not tables or tables[0].equals(tables[1])):
        return "equal", None, None
    if headline is None:
        return "undecided", None, None
    children = [
        Child(name, side.recipe.model_copy(update={"output": str(side.path)}))
        for name, side in ((NEW, again), (OLD, run))
    ]
    tasks = [again.without_model(), run.without_model()]
    differences = {
        name: compare_runs(children, tasks, [True, True], name, ranked="all").differences[0]
        for name in evaluation.tuned
    }
    for name, p in holm({name: difference.p for name, difference in differences.items()}).items():
        differences[name] = replace(differences[name], p_adjusted=p)
    for name in (headline, *differences):
        if is_beyond_chance(differences[name]):
            return "different", name, replace(differences[name], supported=True)
    first, gain = differences[headline], evaluation.difference.get(headline)
    near = gain is not None and first.low is not None and max(-first.low, first.high or 0.0) < abs(gain.value)
    return "within" if near else "undecided", headline, replace(first, supported=False)


def _same_weights(first: Path, second: Path) -> bool:
    """Return whether two trained parts hold the same tensors."""
    files = [{file.relative_to(folder) for file in folder.rglob("*.safetensors")} for folder in (first, second)]
    if files[0] != files[1] or not files[0]:
        return False
    pairs = ((read_tensors(first / name), read_tensors(second / name)) for name in files[0])
    return all(a.keys() == b.keys() and not differing(a, b) for a, b in pairs)


def _first_step(run: RunDirectory, again: RunDirectory) -> int | None:
    """Return the first training step whose loss differs."""
    losses = [
        {line["step"]: line["loss"] for line in directory.metrics() if "loss" in line} for directory in (run, again)
    ]
    return next((step for step in sorted({**losses[0], **losses[1]}) if len({x.get(step) for x in losses}) > 1), None)
