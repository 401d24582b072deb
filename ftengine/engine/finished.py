"""A finished run: load it, evaluate it, predict with it, merge it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ftengine.api import Example, FitsOnValidation, Labels, Listener, LoadedModel, SilentListener, Task
from ftengine.data.encoding import content_of
from ftengine.data.read import Rows
from ftengine.data.row_hashes import identities
from ftengine.data.split import make_splits, read_for
from ftengine.engine.callbacks import Callbacks
from ftengine.engine.evaluation_plan import plan_evaluation
from ftengine.engine.experiment import Job, inferring, require_same_base
from ftengine.engine.merge import MergeReport, check_merge, merge_into
from ftengine.engine.session import Session, held_out
from ftengine.errors import DataError, InputError, NotMergeable
from ftengine.evaluation.plan import EvalPlan
from ftengine.evaluation.stored import add_evaluators
from ftengine.plugins.registry import Registry
from ftengine.report.write import verdict_of
from ftengine.run.directory import SIDECAR, RunDirectory, read_json
from ftengine.run.recipe import Recipe


class Run:
    """A run that `fine_tune` finished.

    Args:
        path: the run directory.
        registry: components; by default those of all installed plugins.
        listener: told of phases and steps.

    Raises:
        RunError: the folder holds no finished run.
    """

    def __init__(self, path: str | Path, *, registry: Registry | None = None, listener: Listener | None = None) -> None:
        self.directory = RunDirectory(path)
        self.directory.require_finished()
        self.path = self.directory.path
        self.recipe = Recipe.read(self.path / "recipe.yaml")
        self.facts: dict[str, Any] = read_json(self.directory.trained / SIDECAR)
        self.listener = listener or SilentListener()
        self._registry = registry
        self._ready: tuple[Session, LoadedModel] | None = None

    @property
    def trained(self) -> Path:
        """Folder of the trained part, in its ecosystem's format."""
        return self.directory.trained

    @property
    def evaluation(self) -> dict[str, Any]:
        """The figures made at the end of training: base, tuned, difference."""
        return self.directory.read_json("evaluation.json")

    @property
    def verdict(self) -> dict[str, Any]:
        """What the run came to: {headline, level, findings}, from its files as they are now."""
        return verdict_of(self.path)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One mapping a training step or validation."""
        return self.directory.metrics()

    @property
    def view_commands(self) -> list[str]:
        """Commands that show what the run's callbacks wrote."""
        return Callbacks(self.recipe, self._registry or Registry(), self.listener).view_commands(self.path)

    @property
    def mergeable(self) -> bool:
        """Whether the strategy has a merged form; a base may still refuse it."""
        strategy = (self._registry or Registry()).build("strategy", self.facts["strategy"], "strategy")
        try:
            check_merge(strategy)
        except NotMergeable:
            return False
        return True

    def evaluate(
        self, data: str | Path | None = None, *, evaluators: Sequence[str | Mapping[str, Any]] = ()
    ) -> dict[str, Any]:
        """Evaluate base and tuned model on the same examples.

        Args:
            data: a data file; by default the run's own test (else validation) split.
            evaluators: further ones (a name, or a mapping of `name` and options), whose figures are made from the
                run's tables of predictions, without a model, and added to its evaluation.json.

        Returns:
            What evaluation.json holds: split, metrics, base, tuned, difference, details, displays, paired, training,
            slices, probes.

        Raises:
            InputError: the data cannot be used, the base is not the one trained on, or an evaluator reads what the
                run did not keep.
        """
        if evaluators:
            if data is not None:
                raise InputError(
                    "--evaluators reads the predictions that the run kept, and --data names other examples. To measure "
                    "those with further evaluators, name them in recipe key 'evaluate'."
                )
            return self._add(evaluators)
        job = self.open_job()
        evaluating = self._evaluation_plan(job, data)
        session = Session(job)
        loaded = self._load_base(job)
        session.place_base(loaded)
        base = session.predictions(loaded, evaluating, "base")
        self._load_trained(job, session, loaded)
        tuned = session.predictions(loaded, evaluating, "tuned")
        return session.evaluate(evaluating, base, tuned).report

    def _add(self, specs: Sequence[str | Mapping[str, Any]]) -> dict[str, Any]:
        """Add the figures of further evaluators to evaluation.json; return what it holds then."""
        from accelerate.state import PartialState

        job = self.open_job(check_source=False)
        named = [{"name": spec} if isinstance(spec, str) else dict(spec) for spec in specs]
        built = [job.registry.build("evaluator", spec, "--evaluators") for spec in named]
        report = add_evaluators(self.directory, built, job.task, self.recipe)
        if PartialState().is_main_process:
            self.directory.write_json("evaluation.json", report)
        return report

    def predict(
        self,
        examples: Iterable[Example],
        *,
        base: bool = False,
        batch_size: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Answer examples one after the other, in their order.

        Args:
            examples: rows such as the task takes; labels are not needed. They are read as a stream.
            base: answer with the base model instead, for comparison.
            batch_size: examples answered together; by default the recipe's.
            options: the task's own, e.g. {"max_new_tokens": 40}.

        Raises:
            DataError: an example cannot be answered; the message has its number.
            InputError: an option is unknown to the task.
        """
        session, loaded = self._model(base)
        task, size = inferring(session.job.task), batch_size or self.recipe.train.batch_size
        stream, done = iter(examples), 0
        while chunk := list(islice(stream, size)):
            for number, example in enumerate(chunk, done + 1):
                try:
                    task.check_input(example)
                except DataError as error:
                    raise DataError(f"example {number}: {error}") from None
            with session.inference(loaded):
                answers = task.infer(loaded, chunk, options)
            yield from answers
            done += len(chunk)

    def merge(self, out: str | Path, dtype: str = "auto") -> MergeReport:
        """Fold the trained part into the base and save a plain model, after checking that outputs agree.

        Args:
            out: a folder that does not exist yet or is empty.
            dtype: of the merged weights; "auto" keeps the base checkpoint's.

        Raises:
            RunError: `out` is in use.
            NotMergeable: the strategy has no merged form.
            MergeChangedOutputs: merging changed the outputs by more than rounding explains; nothing is written.
        """
        target = RunDirectory(out)
        target.require_free("another folder")
        job = self.open_job()
        check_merge(job.strategy)
        return merge_into(target, job, self._load_base(job), self.trained, dtype)

    def open_job(self, *, check_source: bool = True) -> Job:
        """Build the run's components with what they learnt."""
        content = self.recipe.resolved()
        content["strategy"] = self.facts["strategy"]
        content["callbacks"] = content["train"]["trackers"] = []  # nothing happens that they would be told of
        job = Job.open(Recipe.make(content), self._registry, self.listener, check_source=check_source)
        if stored := self.facts["labels"]:
            job.task.labels = Labels(stored["kind"], tuple(stored["names"]))
        job.augmenters, job.regularizers, job.make_regularizers = [], [], []  # they act in training alone
        return job

    def _evaluation_plan(self, job: Job, data: str | Path | None) -> EvalPlan:
        recorded = self.directory.read_json("audit.json")["encoded"]
        name = held_out(recorded) if data is None else "test"
        if name is None:
            raise InputError("this run has no held-out split; name a data file with --data FILE.")
        section = self.recipe.evaluation
        used = {name} if data is None else set()
        if section.training_sample is not None or section.memorisation is not None:
            used.add("train")
        if name == "test" and any(isinstance(evaluator, FitsOnValidation) for evaluator in job.evaluators()):
            used.add("validation")
        splits = self._splits(job, used & set(recorded), recorded, name if data is None else None)
        rows = splits[name] if data is None else read_for(str(data), self.recipe.data, job.task)
        if data is not None and "train" in splits:
            self._tell_of_seen(rows, splits["train"], job.task)
        job.load_skeleton()
        job.load_processor()
        split = job.encode_rows(name, rows)
        validation = None
        if name != "validation" and "validation" in splits:
            validation = job.encode_rows("validation", splits["validation"])
        called = name if data is None else str(data)
        return plan_evaluation(
            job, called, split, train=splits.get("train"), validation=validation, lenient=data is not None
        )

    def _tell_of_seen(self, rows: Rows, train: Rows, task: Task) -> None:
        """Say how many of some rows were trained on, word for word."""
        seen = np.isin(identities(rows, task, 0), identities(train, task, 0))
        if seen.any():
            first = rows.where(int(np.flatnonzero(seen)[0]))
            self.listener.message(
                f"{int(seen.sum()):,} of the {len(rows):,} rows of {rows.source} were trained on, e.g. {first}; "
                "figures on them say nothing about new data"
            )

    def _splits(
        self, job: Job, used: set[str], recorded: Mapping[str, Any], needed: str | None = None
    ) -> dict[str, Rows]:
        """Return those of the run's own splits that are used and hold what they held when the run was made.

        The task is not bound to them: it knows what it learnt then.

        Raises:
            DataError: the split that is needed cannot be read any more, or holds other rows.
        """
        if not used:
            return {}
        try:
            found = make_splits(self.recipe.data, job.task, self.recipe.seed, audited=False).mapping()
        except DataError as error:
            if needed is not None:
                raise
            self.listener.message(f"the run's own data cannot be read, so only --data is measured ({error})")
            return {}
        same = {
            name: found[name]
            for name in sorted(used & set(found))
            if content_of(found[name], job.task) == recorded[name]["content"]
        }
        if needed is not None and needed not in same:
            raise DataError(
                f"the data files changed since run {str(self.path)!r} was made, so its {needed} split may now hold "
                "what it was trained on. Restore them, or name new data with --data FILE."
            )
        if other := sorted(used - set(same)):
            self.listener.message(
                f"the run's {' and '.join(other)} rows have changed since it was trained, so "
                "nothing is measured on them or fitted to them"
            )
        return same

    def _load_base(self, job: Job) -> LoadedModel:
        loaded = job.load_model()
        require_same_base(loaded, self.facts["base"], str(self.trained))
        return loaded

    def _load_trained(self, job: Job, session: Session, loaded: LoadedModel) -> None:
        session.prepare(loaded)  # what trains is float32 from here on, so that nothing of it is rounded
        job.strategy.load(loaded, self.trained)

    def _model(self, base: bool) -> tuple[Session, LoadedModel]:
        if base:
            job = self.open_job()
            session, loaded = Session(job), self._load_base(job)
            loaded.module.requires_grad_(False)  # so that all of it is kept in the compute dtype
            session.place(loaded)
            return session, loaded
        if self._ready is None:
            job = self.open_job()
            session, loaded = Session(job), self._load_base(job)
            self._load_trained(job, session, loaded)
            self._ready = session, loaded
        return self._ready


def load_run(path: str | Path, *, registry: Registry | None = None, listener: Listener | None = None) -> Run:
    """Open a finished run; weights are read when first needed.

    Raises:
        RunError: the folder holds no finished run.
    """
    return Run(path, registry=registry, listener=listener)
