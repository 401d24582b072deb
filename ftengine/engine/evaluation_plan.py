"""Planning an evaluation: its data is read, encoded and checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np

from ftengine.api import (
    SAMPLES,
    Augmenter,
    AugmenterConfig,
    Evaluator,
    FittedEvaluator,
    GenerativeTask,
    ModelEvaluator,
    Task,
    overrides,
)
from ftengine.api.task_sorts import generated_keys
from ftengine.data.augmentation import require_suitable
from ftengine.data.augmentation_preview import sample_rows
from ftengine.data.encoding import EncodedSplit
from ftengine.data.mixed import SOURCE
from ftengine.data.read import read_rows
from ftengine.data.row_hashes import to_json
from ftengine.data.rows import DataRows
from ftengine.data.split import read_for
from ftengine.data.split_columns import numbers_of
from ftengine.engine.evaluation_checks import check_rows
from ftengine.engine.prepared_data import PreparedData, ReadyTask, check_inputs, held_out, inferring
from ftengine.errors import DataError, RecipeError, naming
from ftengine.evaluation.plan import (
    Benchmark,
    EvalPlan,
    EvalSet,
    PlannedProbe,
    answer_keys,
    by_pass,
    calibrates,
    check_metrics,
    how_sampled,
    most_asked,
)
from ftengine.evaluation.results import bind
from ftengine.evaluation.slices import require_column
from ftengine.generation import sampling
from ftengine.parallel.device import processes
from ftengine.run.recipe import FurtherExamples
from ftengine.training.steps import Steps, plan_steps

TRAINING_SAMPLE, LEAKED = "training sample", "rows that are in training too, or whose group is"
CHANGES_SAMPLED = 10
"""Examples, from all of the split, that an augmenter is looked at with before a model loads."""


def evaluation_plan(data: PreparedData, began: int | None = None) -> EvalPlan:
    """Plan the evaluation of a run's models; see `plan_evaluation`.

    Args:
        began: number of processes with which the run began; None: as many as now.
    """
    encoded, name = data.encoded, held_out(data.encoded)
    validation, train = encoded.get("validation") if name == "test" else None, encoded["train"]
    steps = plan_steps(len(train), data.ready.recipe.train, began or processes().num_processes)
    trained = trained_rows(train, steps, data.ready.recipe.training_seed)
    trained_on = data.splits.trained_on
    held, leaked = (None, None) if name is None else without_leaks(encoded[name], trained_on.get(name))
    if validation is not None:
        validation, _ = without_leaks(validation, trained_on.get("validation"))
    plan = plan_evaluation(data.ready, name, held, train=trained, validation=validation, leaked=leaked)
    task = data.ready.task
    writes = {"prompt", "completion"} <= generated_keys(task)
    return replace(plan, to_read=_to_read(data.ready, plan.held_out) if writes else None, writes=writes)


def without_leaks(split: EncodedSplit, trained_on: np.ndarray | None) -> tuple[EncodedSplit, EncodedSplit | None]:
    """Divide held-out examples into those without and those with a copy in training; None where there are none."""
    there = np.zeros(len(split), dtype=bool) if trained_on is None else trained_on[split.rows.before(split.index)]
    if not there.any() or there.all():
        return split, None
    return split.take(np.flatnonzero(~there)), split.take(np.flatnonzero(there))


def trained_rows(train: EncodedSplit, steps: Steps, seed: int) -> DataRows:
    """Return the rows that a run trains on: fewer than all if it ends within its first epoch or samples rows."""
    if not train.draws and steps.total >= steps.per_epoch:
        return train.rows
    return train.rows.select(np.sort(train.index[train.drawn(steps.batch, seed, steps.total)]))


def plan_evaluation(
    ready: ReadyTask,
    split: str | None,
    held_out: EncodedSplit | None,
    *,
    train: DataRows | None = None,
    validation: EncodedSplit | None = None,
    leaked: EncodedSplit | None = None,
    lenient: bool = False,
) -> EvalPlan:
    """Plan what is measured of the base and the tuned model.

    Args:
        split: name of the held-out examples in the figures.
        train: training rows, of which a sample is measured.
        validation: the validation split, where it is not the held-out one.
        leaked: held-out examples that training has too; they are measured separately.
        lenient: leave out slices whose column is missing, instead of raising, and benchmarks.

    Raises:
        InputError: something cannot be measured, or its data is wrong; the message names the recipe's key.
    """
    section = ready.recipe.evaluation
    reading, answering = by_pass(ready.evaluators(), ready.task)
    _check_options(ready, answering)
    training, probes, held = None, [], None
    if held_out is None:
        for key in [key for key in ("slices", "robustness") if getattr(section, key)]:
            raise RecipeError(
                f"evaluation.{key} needs held-out examples, but there are none. Set data.test or data.validation."
            )
    else:
        held = EvalSet(
            split if split in ("test", "validation") else "data",
            held_out,
            reading,
            answering,
            sample(len(held_out) if answering else 0, section.generate.limit, ready.recipe.seed),
            _options(ready, answering),
            _sampled(ready, answering),
            list(_columns(ready, held_out, lenient)),
        )
        leaks = [] if leaked is None else [_leaked(ready, held, leaked)]
        probes += [*leaks, *(_robustness(ready, held, spec, i) for i, spec in enumerate(section.robustness))]
    if train is not None and section.training_sample is not None and reading:
        training = _training_sample(ready, train, held_out, reading)
    if section.forgetting is not None:
        probes.append(_forgetting(ready, section.forgetting, reading))
    if section.memorisation is not None and train is not None:
        probes.append(_memorisation(ready, train, held_out))
    if section.refusal is not None:
        probes.append(_refusal(ready, section.refusal))
    benchmarks = [] if lenient else _benchmarks(ready, reading)
    check_metrics([*reading, *answering, *(benchmark.evaluator for benchmark in benchmarks)])
    to_fit, sizes = _to_fit(ready.task, validation, reading), (section.small_slice, section.resamples)
    plan = EvalPlan(split, held, training, probes, to_fit, *sizes, ready.recipe.seed, benchmarks=benchmarks)
    for eval_set in plan.sets():
        check_rows(eval_set, ready.processor)
        bind(eval_set.evaluators, ready.task.name, ready.task.labels)  # what they keep may depend on the labels
    return plan


def _to_fit(task: Task, validation: EncodedSplit | None, evaluators: Sequence[Evaluator]) -> EvalSet | None:
    """Return the set that the task and evaluators are fitted on; None where it is empty or nothing is fitted."""
    fitting = [evaluator for evaluator in evaluators if calibrates(task) or isinstance(evaluator, FittedEvaluator)]
    return EvalSet("validation", validation, fitting, title=" on validation") if validation and fitting else None


def _leaked(ready: ReadyTask, held: EvalSet, leaked: EncodedSplit) -> PlannedProbe:
    count, limit = len(leaked) if held.answering else 0, ready.recipe.evaluation.generate.limit
    answered = sample(count, limit, ready.recipe.seed)
    also = replace(held, name="leaked", title=f" on {LEAKED}", split=leaked, answered=answered, slices=())
    return PlannedProbe("leaks", LEAKED, leaked.rows.source, also)


def _training_sample(
    ready: ReadyTask, train: DataRows, held_out: EncodedSplit | None, reading: Sequence[Evaluator]
) -> EvalSet | None:
    """Return a sample of training rows as a set, for evaluators that can read it; None where there are none."""
    requested = ready.recipe.evaluation.training_sample
    usual = min(200, max(50, 200 if held_out is None else len(held_out)))
    encoded = _encode_sample(ready, TRAINING_SAMPLE, train, requested if isinstance(requested, int) else usual)
    able = [] if encoded is None else [evaluator for evaluator in reading if _reads_all(evaluator, encoded)]
    return EvalSet("training", encoded, able, title=f" on {TRAINING_SAMPLE}") if encoded and able else None


def _reads_all(evaluator: Evaluator, split: EncodedSplit) -> bool:
    """Return whether an evaluator accepts all rows; a search corpus, say, may lack the answers of training rows."""
    try:
        for row in split.index if overrides(evaluator, "check_row") else ():
            evaluator.check_row(split.rows[int(row)])
    except DataError:
        return False
    return True


def _benchmarks(ready: ReadyTask, evaluators: Sequence[Evaluator]) -> list[Benchmark]:
    benchmarks: list[Benchmark] = []
    for asker in evaluators:
        if isinstance(asker, ModelEvaluator):
            with naming(f"evaluate.{asker.name}"):
                parts = asker.benchmarks(ready.task)
            for data, evaluator in parts.items():
                evaluator.name = asker.name  # type: ignore[misc]  # no recipe names it
                benchmarks.append(Benchmark(f"benchmark-{len(benchmarks)}", data, asker, evaluator))
    return benchmarks


def _to_read(ready: ReadyTask, held: EvalSet | None) -> EvalSet | None:
    """Return a few distinct held-out examples whose answers the report shows; None where it shows none."""
    count, task = ready.recipe.evaluation.answers, ready.task
    if held is None or count is None:
        return None
    members = held.answered if held.answering else held.members
    equal = held.split.duplicates
    first = members if equal is None else members[np.unique(equal[members], return_index=True)[1]]
    chosen = np.sort(first)[sample(len(first), count, ready.recipe.seed)]
    if held.answering:
        return replace(held, answered=chosen)
    brief = task.short_generation if isinstance(task, GenerativeTask) else {}
    options = {**brief, **ready.recipe.evaluation.generate.options}
    return EvalSet("answers", held.split, (), answered=chosen, options=options)


def sample(count: int, limit: int | None, seed: int) -> np.ndarray:
    """Choose at most `limit` of the numbers below `count`, ascending; the seed determines which."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, count]).choice(count, limit, replace=False))


def _columns(ready: ReadyTask, split: EncodedSplit, lenient: bool) -> Iterator[str]:
    """Yield the columns by which a split is sliced."""
    several = [SOURCE] if not isinstance(ready.recipe.data.train, str) and SOURCE in split.rows.columns else []
    for column in dict.fromkeys((*ready.recipe.evaluation.slices, *several)):
        if lenient and column not in split.rows.columns:
            ready.listener.message(f"{split.rows.source} has no column {column!r}, so there are no slices by it")
        else:
            require_column(split.rows, column)
            yield column


def _robustness(ready: ReadyTask, held: EvalSet, spec: Mapping[str, Any], number: int) -> PlannedProbe:
    key = f"evaluation.robustness.{number}"
    augmenter: Augmenter = ready.registry.build("augmenter", dict(spec), key)
    if isinstance(augmenter.config, AugmenterConfig) and "probability" not in spec:
        augmenter = ready.registry.build("augmenter", {**spec, "probability": 1.0}, key)  # every example is changed
    if overrides(augmenter, "mix"):
        raise RecipeError(
            f"{key}: augmenter {augmenter.name!r} mixes examples instead of changing single ones, so it cannot test "
            "robustness. Remove it."
        )
    with naming(key):
        require_suitable(augmenter, ready.task)
        changed = held.split.under([augmenter])
        _refuse_other_questions(ready, changed, augmenter)
    title = f" under {augmenter.name}"
    changed_set = replace(held, name=f"robustness-{number}", title=title, split=changed, slices=())
    return PlannedProbe(
        "ablation" if augmenter.ablates else "robustness", augmenter.name, held.split.rows.source, changed_set
    )


def _refuse_other_questions(ready: ReadyTask, changed: EncodedSplit, augmenter: Augmenter) -> None:
    """Raise RecipeError if an augmenter changes the target of one of the sampled examples."""
    for row in sample_rows(changed)[:CHANGES_SAMPLED]:
        before = ready.task.view(changed.rows[row]).target
        if any(ready.task.view(other).target != before for other in changed.augmented(row, changed.fixed_epoch or 0)):
            raise RecipeError(
                f"augmenter {augmenter.name!r} changes not only what the model reads but also what it is to predict "
                f"({changed.rows.where(row)}), so its figures cannot be compared with those of the examples as they "
                "are. Give rows whose answer stands apart (in a column of its own, or in messages) and put the loss on "
                "the answer alone, or take it out."
            )


def _forgetting(ready: ReadyTask, further: FurtherExamples, reading: Sequence[Evaluator]) -> PlannedProbe:
    with naming("evaluation.forgetting"):
        rows = read_for(further.data, ready.recipe.data, ready.task, ready.registry)
        chosen = rows.select(sample(len(rows), further.limit, ready.recipe.seed))
        split = ready.encode("general", chosen, quiet=True)
    names = ", ".join(evaluator.name for evaluator in reading)
    general = EvalSet("forgetting", split, reading, title=" on general data")
    return PlannedProbe("forgetting", names, further.data, general)


def _memorisation(ready: ReadyTask, train: DataRows, held_out: EncodedSplit | None) -> PlannedProbe:
    section = ready.recipe.evaluation
    assert section.memorisation is not None
    key, count = "evaluation.memorisation", section.memorisation.examples
    evaluator = _serving(ready, "memorisation", section.memorisation.model_extra or {})
    options = _options(ready, [evaluator])
    encoded = _encode_sample(ready, TRAINING_SAMPLE, train, count)
    if encoded is None:
        raise RecipeError(f"{key}: none of the training rows drawn can be read. Raise {key}.examples.")
    sides = [("training", encoded)]
    if held_out is not None:
        sides.append(("held-out", held_out))
    sets = []
    for name, split in sides:
        members, title = sample(len(split), count, ready.recipe.seed), f" for memorisation ({name})"
        sets.append(EvalSet(f"memorisation-{name}", split, (), [evaluator], members, options, title=title))
    contrast = sets[1] if len(sets) > 1 else None
    return PlannedProbe("memorisation", evaluator.name, train.source, sets[0], contrast)


def _refusal(ready: ReadyTask, further: FurtherExamples) -> PlannedProbe:
    key, section = "evaluation.refusal", ready.recipe.data
    evaluator = _serving(ready, "refusal", {})
    with naming(key):
        rows = read_rows(
            further.data,
            registry=ready.registry,
            reader=section.reader,
            on_error=section.on_error,
            columns=section.columns,
            partial=True,
            task=ready.task,
        )
        rows = rows.select(sample(len(rows), further.limit, ready.recipe.seed))
        check_inputs(ready.task, rows, rows.where)
        split = _unencoded(ready, rows)
        members = np.arange(len(split))
    options = _options(ready, [evaluator])
    requests = EvalSet("refusal", split, (), [evaluator], members, options, title=" on requests")
    return PlannedProbe("refusal", evaluator.name, further.data, requests)


def _serving(ready: ReadyTask, probe: str, options: Mapping[str, Any]) -> Evaluator:
    """Build the evaluator with the trait `probe` for a probe, and check that the task writes the answers it reads."""
    key, classes = f"evaluation.{probe}", {entry.name: entry.cls for entry in ready.registry.entries("evaluator")}
    serving = [name for name, cls in classes.items() if cls.traits.probe == probe]
    if len(serving) != 1:
        which = f"evaluators {', '.join(map(repr, serving))} do" if serving else "none that is installed does"
        raise RecipeError(f"{key}: exactly one evaluator must serve this probe, and {which}. Set {key} to null.")
    evaluator: Evaluator = ready.registry.build("evaluator", {"name": serving[0], **options}, key)
    missing = evaluator.reads - answer_keys(ready.task)
    if missing:
        tasks = [entry.cls() for entry in ready.registry.buildable("task")]
        writing = [task.name for task in tasks if isinstance(task, Task) and evaluator.reads <= answer_keys(task)]
        raise RecipeError(
            f"{key}: evaluator {evaluator.name!r} reads {', '.join(map(repr, sorted(missing)))}, which task "
            f"{ready.task.name!r} does not answer. It needs a task that writes text: "
            f"{', '.join(writing) or 'none is installed'}. Set {key} to null."
        )
    _check_options(ready, [evaluator])
    return evaluator


def _options(ready: ReadyTask, evaluators: Sequence[Evaluator]) -> dict[str, Any]:
    """Return the generation options: the largest that any evaluator requests, overridden by the recipe's."""
    own = ready.recipe.evaluation.generate.options
    options = {**most_asked(evaluator.generation for evaluator in evaluators), **own}
    return {"seed": ready.recipe.seed, **options} if options.get("temperature") else options


def _sampled(ready: ReadyTask, evaluators: Sequence[Evaluator]) -> dict[str, Any]:
    """Return the options for drawing several answers, and how many; {} where no evaluator reads them."""
    options = how_sampled(evaluators, ready.recipe.evaluation.generate.options)
    with naming("evaluation.generate"):
        return sampling(options, options[SAMPLES], ready.recipe.seed) if options else {}


def _check_options(ready: ReadyTask, evaluators: Sequence[Evaluator]) -> None:
    """Let the task check its options, by answering no rows (InputError: it does not have one)."""
    if ready.skeleton is not None and (evaluators or ready.recipe.evaluation.generate.options):
        with naming("evaluation.generate"):
            for options in (_options(ready, evaluators), _sampled(ready, evaluators)):
                task_options = {name: value for name, value in options.items() if name != SAMPLES}
                inferring(ready.task).infer(ready.skeleton.loaded, [], task_options)


def _encode_sample(ready: ReadyTask, name: str, rows: DataRows, count: int) -> EncodedSplit | None:
    """Encode a sample of the rows without augmentation; None where none of them has anything to train on."""
    chosen = rows.select(sample(len(rows), count, ready.recipe.seed))
    try:
        return ready.encode(name, chosen, quiet=True)
    except DataError:
        return None


def _unencoded(ready: ReadyTask, rows: DataRows) -> EncodedSplit:
    """Return requests as examples that are answered but never encoded, since they have nothing to train on."""
    texts = [to_json(row).encode() for row in rows]
    if not texts:
        raise DataError(f"{rows.source} holds no request.")
    lengths, count = np.array([len(text) for text in texts], dtype=np.int64), len(texts)
    digests = np.array([blake2b(text, digest_size=16).digest() for text in texts], dtype="S16")
    duplicates, groups = numbers_of(rows, digests, ready.group_column(rows), ready.listener)
    return EncodedSplit(
        rows,
        ready.task,
        ready.processor,
        ready.max_length,
        lengths,
        lengths,
        np.ones(count),
        np.arange(count),
        truncated=0,
        untrained_rows=0,
        content="",
        duplicates=duplicates,
        groups=groups,
    )
