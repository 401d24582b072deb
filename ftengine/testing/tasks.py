"""Checks of tasks."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from ftengine import api
from ftengine.api.on_policy import is_on_policy
from ftengine.api.task_sorts import compares_examples, reference_keys
from ftengine.data.answer_tables import vector_of
from ftengine.data.batching import as_numbers
from ftengine.engine.merge import outputs_of, probe_of
from ftengine.equivalence import LEAST_EFFECT, REORDERED, distance, same_figure
from ftengine.errors import DataError
from ftengine.evaluation.table import Predictions
from ftengine.model import Criterion, trainable
from ftengine.plugins.attribution import described, json_mapping
from ftengine.testing.agreement import agreement
from ftengine.testing.checks import Checks, not_suited, run_checks, skip
from ftengine.testing.samples import on_meta
from ftengine.testing.values import close, equal, explained, in_bfloat16, without_values
from ftengine.training.losses import joint_loss_of, loss_of, represented

CALIBRATED = 100
"""How often the predictions of the few examples are repeated, to fit something to."""

LEARNING, LOOKS = 20, (1, 5, 20)
"""Steps at most in which a task's loss must make labels likelier, and after which of them that is looked at."""

LEAST_GAIN = 1e-4
"""What a measure of agreement must gain, relative to its size."""


def check_task(
    make: Callable[[], api.Task],
    processor: Any,
    examples: Sequence[api.Example],
    load: Callable[[api.Labels | None], api.LoadedModel] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Check a task on some of its examples.

    Args:
        make: returns a fresh task.
        processor: the tokenizer or image processor of the model.
        examples: at least two rows of JSON values.
        load: returns a small model with the task's head for some labels, as `Fixture.load`; None: nothing is computed.
        expected_failed_checks: names of checks that fail, with reasons.
    """
    run_checks(TaskChecks(make, processor, examples, load), expected_failed_checks)


@dataclass
class TaskChecks(Checks):
    """Checks of a task on rows of one shape; without a model, checks that compute are skipped."""

    make: Callable[[], api.Task]
    processor: Any
    examples: Sequence[api.Example]
    load: Callable[[api.Labels | None], api.LoadedModel] | None

    def encoding_is_pure_and_whole(self) -> None:
        before = copy.deepcopy(list(self.examples))
        task = self._bound()
        for row in self.examples:
            features = task.encode(row, self.processor)
            assert isinstance(features, api.Features), f"encode returns {described(features)}, not api.Features"
            assert equal(features, task.encode(row, self.processor)), "a second call gives other features"
        assert list(self.examples) == before, "an example was changed in place: copy what changes"

    def labels_are_all_that_is_learnt(self) -> None:
        task, other = self._bound(), self.make()
        if task.labels is not None:
            stored = json.loads(json.dumps(asdict(task.labels)))
            other.labels = api.Labels(stored["kind"], tuple(stored["names"]))
        assert other.labels == task.labels, "labels differ after conversion to JSON and back"
        for name in ("evaluators", "predicts"):
            assert getattr(other, name) == getattr(task, name), f"{name} differ if the labels are given"
        same = [equal(other.encode(row, self.processor), task.encode(row, self.processor)) for row in self.examples]
        assert all(same), "features differ where labels are given"

    def batches_hold_every_example(self) -> None:
        task = self._bound()
        batch = task.collate([task.encode(row, self.processor) for row in self.examples], self.processor)
        sizes = {key: len(value) for key, value in batch.items() if getattr(value, "ndim", 0)}
        count = len(self.examples)
        assert sizes, "collate returns no tensors"
        # A task that compares answers makes several sequences of each example.
        wrong = {key: size for key, size in sizes.items() if size == 0 or size % count}
        assert not wrong, f"tensors of {sizes} rows for {count} examples: the first dimension counts examples"

    def inputs_can_be_put_back(self) -> None:
        task = self._bound()
        before = copy.deepcopy(list(self.examples))
        for row in self.examples:
            assert task.in_folder(row, ".").keys() >= row.keys(), "in_folder loses columns"
            view = task.view(row)
            again = task.view(task.with_inputs(row, list(view.inputs)))
            assert again.target == view.target, "the target changes with the inputs"
            assert len(again.inputs) == len(view.inputs), "the number of inputs changes"
            texts = all(isinstance(value, str) for value in view.inputs)
            same = not texts or list(again.inputs) == list(view.inputs)
            assert same, f"with_inputs got {list(view.inputs)}, but view then returns {list(again.inputs)}"
        assert list(self.examples) == before, "an example was changed in place: copy what changes"

    def the_criterion_is_what_is_summed(self) -> None:
        task, loaded, batch = self._ready()
        loss, weight = loss_of(task, loaded.module, batch, Criterion())
        assert bool(torch.isfinite(loss)), f"the loss is {loss}"
        assert loss.requires_grad, "no gradient reaches the model"
        expected = sum(task.encode(row, loaded.processor).weight for row in self.examples)
        assert float(weight) == expected, f"the weight is {float(weight):g}, that of the features {expected:g}"
        if task.predicts_probabilities:
            twice, _ = loss_of(task, loaded.module, batch, _Scaled(2, 1.0))
            assert distance(twice, 2 * loss) <= REORDERED, f"two passes give {twice}, one gives {loss}"

    def it_computes_in_bfloat16(self) -> None:
        task, loaded, batch = self._ready()
        advice = "take outputs to float32 first; numpy has no bfloat16"
        with in_bfloat16(loaded.module), explained("loss or predict fails in bfloat16, under autocast", advice):
            loss, _ = loss_of(task, loaded.module, batch, Criterion())
            loss.backward()
            self._predicted(task, loaded, batch)
        assert bool(torch.isfinite(loss)), f"the loss is {loss} in bfloat16: {advice}"

    def a_model_without_values_can_be_seen(self) -> None:
        task = self._bound()
        if not api.overrides(task, "set_model"):
            skip("it does not look at the model")
        with without_values("set_model"):
            task.set_model(on_meta(self._loaded(task)), None)

    def examples_that_meet_may_come_in_parts(self) -> None:
        task, loaded, batch = self._ready()
        if not compares_examples(task):
            skip("its loss compares no examples with each other")
        with torch.no_grad():
            expected, weight = loss_of(task, loaded.module, batch, Criterion())
            parts = [represented(task, loaded.module, self._batch(task, loaded, [row])) for row in self.examples]
            rows = {name: [part[name] for part in reversed(parts)] for name in parts[0]}
            loss = joint_loss_of(task, {name: torch.cat(of) for name, of in rows.items()})
        assert close([float(x) for x in loss], [float(expected), float(weight)]), (
            f"joint_loss of examples that were represented one by one, in another order, is {loss}, and loss of all "
            f"of them {(expected, weight)}: loss is joint_loss of represent, and no row of that depends on the others"
        )

    def losses_add_up_over_batches(self) -> None:
        task, loaded, _ = self._ready()
        if compares_examples(task):
            skip("its loss compares examples with each other")
        batch_loss, weight = self._loss(task, loaded, self.examples)
        parts = [self._loss(task, loaded, [row]) for row in self.examples]
        sums = [sum(column) for column in zip(*parts, strict=True)]
        advice = "return the sum of losses and its weight, and leave padding out of both"
        assert sums[1] == weight, f"the weight of a batch is {weight:g}, that of its examples {sums[1]:g}: {advice}"
        assert same_figure(sums[0], batch_loss), (
            f"the loss of a batch is {batch_loss:.6g}, the sum of its examples' one by one {sums[0]:.6g}: {advice}"
        )

    def drawn_answers_can_be_learnt_from(self) -> None:
        task, loaded, batch = self._ready()
        if not is_on_policy(task):
            skip("it learns from no answers of its model's")
        request = api.DrawRequest(loaded, self.examples, 0, 0, len(self.examples), nullcontext)
        with torch.no_grad():
            drawn, again = (task.draw(request) for _ in "ab")
        assert equal(drawn, again), "a step draws other answers the second time: draw by (seed, step, prompt)"
        draws = task.learn_from(task.score(self.examples, drawn))
        batch = task.collate(draws.examples, loaded.processor) if draws.examples else batch
        loss, _, sums, _ = task.learn(loaded.module, batch)
        assert bool(torch.isfinite(loss)), f"the loss of drawn answers is {loss}"
        assert len(sums) == len(task.token_figures), f"{len(sums)} sums for figures {task.token_figures}"

    def another_criterion_changes_the_loss(self) -> None:
        task, loaded, batch = self._ready()
        if not task.predicts_probabilities:
            skip("it does not say that other criteria suit it (`predicts_probabilities`)")
        plain, _ = loss_of(task, loaded.module, batch, Criterion())
        half, _ = loss_of(task, loaded.module, batch, _Scaled(1, 0.5))
        assert distance(half, plain) > LEAST_EFFECT, (
            "a criterion that halves every loss has no effect: compute losses with the criterion that loss() gets"
        )

    def training_makes_labels_likelier(self) -> None:
        task, loaded, batch = self._ready()
        weights = list(trainable(loaded.module).values())
        optimizer = torch.optim.Adam(weights, lr=1e-3)
        before = agreement(task, loaded, batch, self._predicted(task, loaded, batch))
        after = dict[str, float]()
        for step in range(1, LEARNING + 1):
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss_of(task, loaded.module, batch, Criterion())[0].backward()
            moved = any(weight.grad is not None and bool(weight.grad.any()) for weight in weights)
            assert moved or step > 1, (
                "the loss has a gradient of 0 in every weight, so nothing is learnt: do not detach or round the "
                "model's output or take its argmax before the loss is computed"
            )
            optimizer.step()
            if step in LOOKS:
                after = agreement(task, loaded, batch, self._predicted(task, loaded, batch))
                if any(after[name] > value + LEAST_GAIN * max(1.0, abs(value)) for name, value in before.items()):
                    return
        worse = [name for name, value in before.items() if after[name] < value]
        if not worse:
            skip("neither its predictions nor metrics of its evaluators measure agreement with labels")
        name = worse[0]
        raise AssertionError(
            f"{LEARNING} steps that follow the loss's gradient take {name} from {before[name]:.4g} to "
            f"{after[name]:.4g}: the loss must fall when labels become likelier. Check the sign of the loss, the "
            "logits, or the compared values"
        )

    def predictions_have_their_keys(self) -> None:
        task, loaded, batch = self._ready()
        predictions = self._predicted(task, loaded, batch)
        count = len(self.examples)
        assert len(predictions) == count, f"{len(predictions)} predictions of {count} examples"
        missing = [
            sorted(task.predicts - prediction.keys()) for prediction in predictions if task.predicts - prediction.keys()
        ]
        assert not missing, f"predictions lack {missing[0]}"
        odd = {
            k: type(v).__name__ for prediction in predictions for k, v in prediction.items() if isinstance(v, Tensor)
        }
        assert not odd, f"predictions hold {odd}; they are plain numbers, texts and lists"

    def predictions_do_not_depend_on_the_batch(self) -> None:
        task, loaded, batch = self._ready()
        together = self._predicted(task, loaded, batch)
        separately = [self._predicted(task, loaded, self._batch(task, loaded, [row]))[0] for row in self.examples]
        backwards = self._predicted(task, loaded, self._batch(task, loaded, self.examples[::-1]))[::-1]
        for i, (expected, two, three) in enumerate(zip(together, separately, backwards, strict=True)):
            for key in expected:
                assert close(expected[key], two.get(key)), (
                    f"example {i} is predicted {key} {expected[key]!r} among others and {two.get(key)!r} alone: "
                    "padding, or another example, has an influence"
                )
                assert close(expected[key], three.get(key)), (
                    f"predictions are not in the batch's order: {key} of row {i}"
                )

    def answers_have_their_keys(self) -> None:
        task, loaded, _ = self._ready()
        if not isinstance(task, api.GenerativeTask):
            skip("it writes no generations")
        rows = self.examples[:2]
        answers = task.generate(loaded, rows, {**task.short_generation})
        assert task.generates, "`generates` names no key of what `generate` returns"
        assert len(answers) == len(rows), f"{len(answers)} answers to {len(rows)} rows"
        missing = [sorted(task.generates - answer.keys()) for answer in answers if task.generates - answer.keys()]
        assert not missing, f"answers lack {missing[0]}, which `generates` declares"
        again = task.generate(loaded, rows, {**task.short_generation})
        assert again == answers, "a second call gives other answers to the same rows"

    def rows_without_an_answer_are_answered(self) -> None:
        task, loaded, _ = self._ready()
        if not api.overrides(task, "infer"):
            skip("it answers no rows without labels")
        rows = self.examples[:2]
        for row in rows:
            task.check_input(row)
        answers = task.infer(loaded, rows, {**task.short_generation} if isinstance(task, api.GenerativeTask) else {})
        assert len(answers) == len(rows), f"{len(answers)} answers to {len(rows)} rows"
        assert task.infer(loaded, [], {}) == [], "infer answers something to no rows"
        if task.traits.answers_vectors:
            sizes = [len(vector_of(answer) or ()) for answer in answers]
            alike = len(set(sizes)) == 1 and 0 not in sizes
            assert alike, (
                f"its traits say that it answers with vectors, and of {len(rows)} rows these have {sizes} numbers: "
                "return mappings with one list of floats, equally long"
            )
        json.dumps(answers)

    def data_is_recognised(self) -> None:
        task, columns = self.make(), sorted({name for row in self.examples for name in row})
        if not api.overrides(task, "recognise"):
            skip("`ftengine init` does not propose it")
        recognised = task.recognise(columns, self.examples)
        if recognised is None:
            skip("it recognises rows of another shape")
        assert isinstance(recognised, api.Recognised), f"recognise returns {described(recognised)}"
        assert recognised.certainty in (0, 1, 2, 3), f"the certainty is {recognised.certainty!r}; it is 0 to 3"
        unknown = sorted(set(recognised.columns.values()) - set(columns))
        assert not unknown, (
            f"it renames the column {unknown[0]!r}, and there are {columns}: {{name: column of the file}}"
        )
        with explained("its Config refuses the options that recognise returns", "return options of its own"):
            task.Config.model_validate(dict(recognised.options))

    def examples_are_decoded_into_pieces(self) -> None:
        task = self._bound()
        if not api.overrides(task, "decode_example"):
            skip("it decodes no examples")
        for row in self.examples:
            features = task.encode(row, self.processor)
            pieces = task.decode_example(features, self.processor)
            sound = isinstance(pieces, Sequence) and all(
                isinstance(piece, tuple) and [type(part) for part in piece] == [str, bool] for piece in pieces
            )
            assert sound, f"decode_example returns {pieces!r:.80}; it returns (text, is trained on) pieces"
            if pieces and features.weight:
                assert any(trained for _, trained in pieces), (
                    "no piece is trained on, though the example's weight is not 0"
                )

    def predictions_are_decoded_as_json(self) -> None:
        task, loaded, batch = self._ready()
        if not api.overrides(task, "decode_prediction"):
            skip("its predictions are shown as they are")
        for prediction in self._predicted(task, loaded, batch):
            json_mapping(task, "decode_prediction", task.decode_prediction(prediction))

    def outputs_of_a_probe_are_logits(self) -> None:
        task, loaded, _ = self._ready()
        if not (api.overrides(task, "probe_batch") or api.overrides(task, "raw_outputs")):
            skip("merged models are compared on random tokens, by their logits")
        probe = probe_of(task, loaded)
        with torch.no_grad():
            outputs, again = (outputs_of(task, loaded.module, probe) for _ in "ab")
        assert isinstance(outputs, Tensor), f"raw_outputs returns {described(outputs)}; it returns a tensor"
        assert bool(torch.isfinite(outputs).all()), "outputs are not finite for the batch that probe_batch returns"
        assert equal(outputs, again), "outputs of one batch differ the second time"

    def it_answers_by_what_it_calibrated(self) -> None:
        task, loaded, batch = self._ready()
        if not api.overrides(task, "calibrate"):
            skip("it calibrates nothing")
        if not task.predicts_probabilities:
            skip("its predictions for these rows are no probabilities")
        predictions = Predictions.of(pa.Table.from_pylist(self._predicted(task, loaded, batch) * CALIBRATED))
        try:
            fitted = task.calibrate(predictions.by_key())
        except DataError as reason:
            not_suited(str(reason))
        task.calibration = json_mapping(task, "calibrate", fitted)
        if api.overrides(task, "infer"):
            json.dumps(task.infer(loaded, self.examples, {}))

    def _bound(self) -> api.Task:
        task = self.make()
        task.labels = task.learn_labels({"train": self.examples})
        return task

    def _loss(self, task: api.Task, loaded: api.LoadedModel, rows: Sequence[api.Example]) -> tuple[float, float]:
        with torch.no_grad():
            loss, weight = loss_of(task, loaded.module, self._batch(task, loaded, rows), Criterion())
        return float(loss), float(weight)

    def _predicted(self, task: api.Task, loaded: api.LoadedModel, batch: api.Batch) -> list[api.Prediction]:
        with torch.no_grad():
            return task.predict(loaded.module, batch)

    def _batch(self, task: api.Task, loaded: api.LoadedModel, rows: Sequence[api.Example]) -> api.Batch:
        batch = task.collate([task.encode(row, loaded.processor) for row in rows], loaded.processor)
        keys = reference_keys(task)
        predictions = self._predicted(task, loaded, batch) if keys else []  # the model is its own reference
        values = {key: as_numbers([prediction[key] for prediction in predictions]) for key in keys}
        return {**batch, "reference": values} if keys else batch

    def _loaded(self, task: api.Task) -> api.LoadedModel:
        if self.load is None:
            not_suited(f"there is no model with the head {task.head!r} to compute with")
        return self.load(task.labels)

    def _ready(self) -> tuple[api.Task, api.LoadedModel, api.Batch]:
        task = self._bound()
        loaded = self._loaded(task)
        loaded.module.eval()
        if api.overrides(task, "set_model"):
            task.set_model(loaded, None)
        return task, loaded, self._batch(task, loaded, self.examples)


class _Scaled(Criterion):
    """The plain losses of so many passes together, times a factor."""

    def __init__(self, passes: int, factor: float) -> None:
        self.passes, self._factor = passes, factor

    def single(self, targets: Tensor, *logits: Tensor) -> Tensor:
        return self._sum(super().single, targets, logits)

    def multi(self, targets: Tensor, *logits: Tensor) -> Tensor:
        return self._sum(super().multi, targets, logits)

    def regression(self, targets: Tensor, *outputs: Tensor) -> Tensor:
        return self._sum(super().regression, targets, outputs)

    def _sum(self, loss: Callable[..., Tensor], targets: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        return self._factor * torch.stack([loss(targets, outputs[i]) for i in range(self.passes)]).sum(0)
