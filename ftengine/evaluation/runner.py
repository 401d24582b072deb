"""Running a model over examples in batches, and writing its predictions into tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor

from ftengine.api import (
    SAMPLES,
    Evaluator,
    Example,
    GenerativeTask,
    Listener,
    LoadedModel,
    ModelEvaluator,
    Prediction,
    Task,
    overrides,
)
from ftengine.data.batching import batches_in_step, by_length
from ftengine.data.encoding import EncodedSplit
from ftengine.errors import PluginError, TrainingError
from ftengine.evaluation.plan import Benchmark, EvalPlan, EvalSet, listed, read_columns
from ftengine.evaluation.slices import as_text
from ftengine.evaluation.table import FOLDER, MEMBER, ROWS, Predictions, Writer, judged, kept_together, merged
from ftengine.parallel.device import to_device
from ftengine.parallel.sharding import is_sharded, reshard
from ftengine.plugins.attribution import contract_error, described, each, named, token_count
from ftengine.run.directory import RunDirectory, write_folder

MemberPredictions = Iterator[tuple[int, Prediction]]
"""For each example its position in the split, and what was predicted."""

LONGEST_VALUE = 500
"""Characters of a row's value that are kept beside its prediction."""

READ, ANSWERED, ASKED = "read", "answered", "asked"
Outputs = Mapping[tuple[str, str], pa.Table]
"""What a model gives of sets, before anything judges it: by name of a set and `READ` (predictions of all its examples)
or `ANSWERED` (free answers to those that it has chosen), sorted by member, a column a key of the task's; by that of a
benchmark and `ASKED`, what its asker returned, with the number of each answer's group."""


class EvalResult:
    """Predictions of one model: a table per set, in unnamed temporary files that vanish with the process."""

    def __init__(self) -> None:
        self.files: dict[str, IO[bytes]] = {}
        self.outputs: dict[tuple[str, str], IO[bytes]] = {}
        """Of these, what no later run will find in the cache, as `Outputs` has it."""

    def put(self, of: EvalSet | Benchmark, table: pa.Table) -> None:
        pq.write_table(table, self.file(of), row_group_size=ROWS)

    def file(self, of: EvalSet | Benchmark) -> IO[bytes]:
        """Write a table to a temporary file."""
        self.files[of.name] = TemporaryFile(prefix="ftengine-")  # noqa: SIM115
        return self.files[of.name]

    def predictions(self, of: EvalSet | Benchmark) -> Predictions:
        return Predictions.of(pq.read_table(self.files[of.name]))


def save_predictions(run: RunDirectory, **sides: EvalResult) -> None:
    """Write models' tables into the run, as predictions/SET-SIDE.parquet; sides are "base" and "tuned"."""

    def fill(folder: Path) -> None:
        for side, result in sides.items():
            for name, file in result.files.items():
                file.seek(0)
                with open(folder / f"{name}-{side}.parquet", "wb") as target:
                    copyfileobj(file, target)

    write_folder(run.path / FOLDER, fill)


@dataclass(frozen=True)
class EvalRunner:
    """Runs one model, each process over its share of the examples.

    Args:
        batch_size: most examples of a batch of the longest examples.
        together: most examples of a batch of shorter ones, limited to the tokens of `batch_size` longest examples.
        tokens: most tokens of a batch, as in `micro_batches`; 0 for no limit.
        answered: most examples that are answered together.
        side: "base" or "tuned", for messages to the listener.
        outputs: outputs of the model that are known already; the model computes the others.
        on_output: called with the name and the table of each output that the model computed, before it is judged.
    """

    accelerator: Accelerator
    loaded: LoadedModel
    task: Task
    batch_size: int
    together: int
    tokens: int
    answered: int
    listener: Listener
    side: str
    outputs: Outputs = field(default_factory=dict)
    on_output: Callable[[tuple[str, str], pa.Table], None] = lambda name, outputs: None

    def run(self, plan: EvalPlan) -> EvalResult:
        """Return the tables of all sets and benchmarks; every process has all of them."""
        result = EvalResult()
        for eval_set in plan.sets():
            result.put(eval_set, self._table(eval_set, plan.seed))
        for asker in dict.fromkeys(benchmark.asker for benchmark in plan.benchmarks):
            benchmarks = [benchmark for benchmark in plan.benchmarks if benchmark.asker is asker]
            names = [benchmark.name for benchmark in benchmarks]
            tables = {name: self.outputs[name, ASKED] for name in names if (name, ASKED) in self.outputs}
            if len(tables) < len(benchmarks):
                tables = self._ask(asker, benchmarks)
            for benchmark in benchmarks:
                result.put(benchmark, _judged_benchmark(benchmark, tables[benchmark.name]))
        return result

    def _ask(self, asker: ModelEvaluator, benchmarks: Sequence[Benchmark]) -> dict[str, pa.Table]:
        """Return the answers to an evaluator's own questions, by benchmark; every process computes all of them."""
        self.loaded.module.eval()
        self.listener.phase(f"evaluate {self.side}: {asker.name}")
        with torch.no_grad(), self.accelerator.autocast():
            predicted = asker.ask_models(self.loaded)
        if not isinstance(predicted, Mapping) or {benchmark.data for benchmark in benchmarks} - predicted.keys():
            names = ", ".join(repr(benchmark.data) for benchmark in benchmarks)
            raise contract_error(asker, "ask_models", predicted, f"a mapping with {names}")
        tables: dict[str, pa.Table] = {}
        for benchmark in benchmarks:
            writer, groups = Writer(), list[Any]()
            for i, answer in enumerate(each(asker, "ask_models", predicted[benchmark.data], Mapping)):
                groups.append((answer["group"],) if "group" in answer else i)
                writer.put(i, {key: value for key, value in answer.items() if key != "group"})
            table, numbers = writer.finish(), {group: number for number, group in enumerate(dict.fromkeys(groups))}
            group = pa.array([numbers[groups[i]] for i in table[MEMBER].to_pylist()], pa.int64())
            tables[benchmark.name] = table.append_column("group", group)
            self.on_output((benchmark.name, ASKED), tables[benchmark.name])
        return tables

    def _table(self, of: EvalSet, seed: int) -> pa.Table:
        phase = f"evaluate {self.side}{of.title}"
        table = own_columns(of)
        if of.reading:
            predicted = self._outputs((of.name, READ), seed, lambda: self.predictions(of.split, phase))
            table = _beside(table, self._judged(predicted, of, of.reading))
            table = self._ranked(table, of.reading)
        if len(of.answered):
            answers = self._outputs((of.name, ANSWERED), seed, lambda: self.answers(of, f"{phase}: answers"))
            table = _beside(table, self._judged(answers, of, of.answering))
            table = table.append_column("answered", pa.array(np.isin(of.members, answers[MEMBER].to_numpy())))
        return table.drop_columns([MEMBER])

    def _outputs(self, name: tuple[str, str], seed: int, ask: Callable[[], MemberPredictions]) -> pa.Table:
        """Return the model's outputs, sorted by member; they are computed unless they are known."""
        if name in self.outputs:
            return self.outputs[name]
        set_seed(seed)  # what is drawn for one set does not depend on which others there are
        writer = Writer()
        for member, prediction in ask():
            writer.put(member, prediction)
        outputs = merged(gather_object([writer.finish()]))
        self.on_output(name, outputs)
        return outputs

    def _judged(self, outputs: pa.Table, of: EvalSet, evaluators: Sequence[Evaluator]) -> pa.Table:
        """Add the columns that evaluators read of rows and keep; each process computes a share."""
        columns = read_columns(evaluators)
        keeping = [evaluator for evaluator in evaluators if overrides(evaluator, "keep")]
        if not (columns or keeping):
            return outputs

        def columns_of(member: int) -> dict[str, Any]:
            row = of.split.example(member) if columns else {}
            return {column: row.get(column) for column in columns}

        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        share = outputs.take(np.arange(rank, len(outputs), ranks)) if ranks > 1 else outputs
        return merged(gather_object([judged(share, keeping, columns_of)]))

    def _ranked(self, table: pa.Table, evaluators: Sequence[Evaluator]) -> pa.Table:
        """Add the columns that evaluators compute from all examples at once; every process computes all of them."""
        self.loaded.module.eval()
        for evaluator in (item for item in evaluators if overrides(item, "keep_together")):
            with torch.no_grad(), self.accelerator.autocast():
                columns = kept_together(evaluator, Predictions.of(table), partial(self.task.infer, self.loaded))
            for name, column in columns.items():
                table = table.append_column(name, pa.array(list(column) if column.ndim > 1 else column))
        return table

    def predictions(self, split: EncodedSplit, phase: str) -> MemberPredictions:
        """Yield the predictions for this process's share of examples, longest first."""
        longest = self.batch_size * int(split.lengths.max(initial=1))
        tokens = min(self.tokens or longest, longest)
        for members, counts in self._batches(np.arange(len(split)), split, phase, self.together, tokens):
            batch = to_device(split.batch(members), self.accelerator.device)
            # Not inference_mode, which gains 8 % on a tiny model: what a module keeps of a forward trains afterwards.
            with torch.no_grad(), self.accelerator.autocast(), ExitStack() as around:
                for path in self.loaded.inference_paths:
                    around.enter_context(path.around_prediction(self.loaded.module, batch))
                predictions = self.task.predict(self.loaded.module, batch)
            if not counts:
                continue
            _require_predictions(self.task, "predict", predictions, len(members), self.task.predicts)
            for member, prediction in zip(members, predictions, strict=True):
                _require_finite(prediction, split, member, phase)
                yield int(member), prediction

    def answers(self, of: EvalSet, phase: str) -> MemberPredictions:
        """Yield the answer to each of the chosen examples in this process's share, longest first.

        If no evaluator reads the answers, an error of generation becomes a message to the listener.
        """
        answered = self._answers(of, phase)
        return answered if of.answering else self._while_it_goes(answered)

    def _answers(self, of: EvalSet, phase: str) -> MemberPredictions:
        sampled = dict(of.sampled)
        times = sampled.pop(SAMPLES, 0)
        for chosen, counts in self._batches(of.answered, of.split, phase, self.answered):
            rows, parts = [of.split.example(member) for member in chosen], of.split.parts(chosen)
            with torch.no_grad(), self.accelerator.autocast():
                answers = self._generated(rows, of.options, parts)
                drawn = self._drawn(rows, sampled, parts, times) if times else []
            if not counts:
                continue
            for i, (member, answer) in enumerate(zip(chosen, answers, strict=True)):
                several = {SAMPLES: drawn[i]} if drawn else {}
                yield int(member), {**answer, **several}

    def _drawn(
        self, rows: Sequence[Example], options: Mapping[str, Any], parts: Mapping[str, Any], times: int
    ) -> list[list[str]]:
        """Return several answers to each row, drawn together, so that each prompt is read once."""
        repeated = [row for row in rows for _ in range(times)]
        of_parts = {key: [part for part in own for _ in range(times)] for key, own in parts.items()}
        answers = self._generated(repeated, {**options, "sample": [*range(times)] * len(rows)}, of_parts)
        texts = [answer["completion"] for answer in answers]
        return [texts[start : start + times] for start in range(0, len(texts), times)]

    def _generated(
        self, rows: Sequence[Example], options: Mapping[str, Any], parts: Mapping[str, Any]
    ) -> list[Prediction]:
        assert isinstance(self.task, GenerativeTask)
        answers = self.task.generate(self.loaded, rows, options, **parts)
        _require_predictions(self.task, "generate", answers, len(rows), self.task.generates)
        return answers

    def _while_it_goes(self, predicted: MemberPredictions) -> MemberPredictions:
        """Yield answers that no evaluator reads; an error of generation becomes a message."""
        try:
            yield from predicted
        except Exception as error:  # whatever a model's own code raises
            self.listener.message(f"the {self.side} model's answers are not shown, as it cannot write them: {error}")

    def _batches(
        self, members: np.ndarray, split: EncodedSplit, phase: str, size: int, tokens: int = 0
    ) -> Iterator[tuple[np.ndarray, bool]]:
        """Yield this process's batches, and whether each counts; sharded processes all have equally many."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        self.loaded.module.eval()
        self.listener.phase(phase, len(members))
        ordered, fill = members[by_length(split.lengths[members])], is_sharded(self.loaded.module)
        module, paths = self.loaded.module, self.loaded.inference_paths if tokens and not fill else ()
        paths = tuple(path for path in paths if path.suits(module))  # of a divided model, all processes have to ask

        def computed(some: np.ndarray) -> int | None:
            batch = split.batch(some)
            counts = [token_count(path, "predicted_tokens", path.predicted_tokens(module, batch)) for path in paths]
            return min((count for count in counts if count is not None), default=None)

        for chosen, counts in batches_in_step(
            ordered,
            size,
            rank,
            ranks,
            fill=fill,
            lengths=split.lengths,
            tokens=tokens,
            computed=computed if paths else None,
        ):
            yield chosen, counts
            self.listener.advance(len(chosen) * ranks if counts else 0)
        reshard(self.loaded.module)


def _judged_benchmark(benchmark: Benchmark, answers: pa.Table) -> pa.Table:
    """Return the table of a benchmark from its answers."""
    table = judged(answers.drop_columns(["group"]), [benchmark.evaluator], lambda _: {})
    ids = table[MEMBER]
    places = pa.array([f"{benchmark.data}:{i + 1}" for i in ids.to_pylist()], pa.string())
    for name, column in (("row", ids), ("group", answers["group"]), ("duplicate", ids), ("place", places)):
        table = table.append_column(name, column)
    return table.drop_columns([MEMBER])


def own_columns(of: EvalSet) -> pa.Table:
    """Return the table's columns that need no model."""
    split, members = of.split, of.members
    index = split.index[members]

    def numbers(equal: np.ndarray | None) -> np.ndarray:
        """Return the group number of each member, from 0 on."""
        return np.unique(members if equal is None else equal[members], return_inverse=True)[1].ravel().astype(np.int64)

    columns = {
        MEMBER: members,
        "row": index,
        "place": [split.rows.where(int(row)) for row in index],
        "group": numbers(split.groups),
        "duplicate": numbers(split.duplicates),
    }
    for column in of.slices:
        columns[f"slice.{column}"] = [as_text(split.rows[int(row)].get(column), None) for row in index]
    for column in sorted(set(split.rows.columns).difference(split.rows.file_columns)):
        columns[f"row.{column}"] = [_plain_text(split.rows[int(row)].get(column)) for row in index]
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def _plain_text(value: Any) -> str | None:
    """Return the beginning of a value as text; None where it is missing, or neither text nor numbers nor made of them.

    Only rules read it, to see in which rows errors lie.
    """
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except TypeError:
        return None
    return None if value is None else text[:LONGEST_VALUE].encode("utf-8", "replace").decode()


def _beside(table: pa.Table, predicted: pa.Table) -> pa.Table:
    """Add columns to a table, null for members without a prediction; both tables are sorted by member."""
    members, all_members = predicted[MEMBER].to_numpy(), table[MEMBER].to_numpy()
    there = np.isin(all_members, members)
    taken = predicted.take(pa.array(np.where(there, np.searchsorted(members, all_members), 0), mask=~there))
    for name in taken.column_names:
        if name not in table.column_names:
            table = table.append_column(name, taken[name])
    return table


def _require_predictions(task: Task, method: str, returned: Any, count: int, keys: Set[str]) -> None:
    """Raise PluginError unless a task returned a mapping with its declared keys for each of `count` examples."""
    if not isinstance(returned, list) or len(returned) != count:
        raise contract_error(task, method, returned, f"a list of one mapping an example, {count} here")
    for prediction in returned:
        if not isinstance(prediction, Mapping):
            raise contract_error(task, method, prediction, "a list of mappings")
        if missing := keys - prediction.keys():
            had = f"a mapping with {', '.join(map(repr, prediction)) or 'no key'}"
            raise PluginError(
                f"{named(task)}: {method}() returned {had}, without {listed(missing)}, which it declares."
            )
        for key, value in prediction.items():
            if isinstance(value[0] if isinstance(value, list) and value else value, Tensor):
                raise PluginError(
                    f"{named(task)}: {method}() returned {described(value)} as {key!r}; it must return plain numbers, "
                    "texts and lists: x.float().tolist()."
                )


def _require_finite(prediction: Prediction, split: EncodedSplit, member: int, phase: str) -> None:
    """Raise TrainingError, naming the example, if a prediction is not finite."""
    for key, value in prediction.items():
        numeric = isinstance(value, float) or (isinstance(value, list) and value and isinstance(value[0], float))
        if numeric and not np.isfinite(value).all():
            raise TrainingError(
                f"{phase}: the model's {key} is not finite ({split.rows.where(int(split.index[member]))}). "
                "Set train.precision=float32 if it is not; else lower train.learning_rate, or look at the base model."
            )
