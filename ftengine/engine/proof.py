"""Verifying an export: does the artifact answer like the tuned model?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftengine.api import Exported, Exporter, ExportSource, LoadedModel, Prompt, Runtime, overrides
from ftengine.api.task_sorts import gives_prompts
from ftengine.chat import stop_tokens
from ftengine.engine.artifact import opened_by
from ftengine.engine.evaluate import held_out_rows
from ftengine.engine.finished import Run
from ftengine.engine.informative_rows import informative_examples, informative_prompts, texts_of
from ftengine.engine.merge import mean_of, outputs_of
from ftengine.engine.prepared_data import ReadyTask
from ftengine.engine.variants import find_fault
from ftengine.equivalence import distance, log_probability_distance
from ftengine.errors import ExportDiffers, FtengineError, NoRuntime, ProgramFailed
from ftengine.evaluation.divergence import divergences
from ftengine.evaluation.likeness import ROW, Likeness, likeness
from ftengine.evaluation.prompt_faults import token_fault
from ftengine.evaluation.questions import (
    ModuleRuntime,
    Question,
    as_runtime,
    complete_text,
    end_tokens,
    questions,
    scored,
)
from ftengine.generation import settings_faults
from ftengine.model import evaluating
from ftengine.parallel.device import to_device
from ftengine.run.export import Proof
from ftengine.text import number, one_line

ROWS = 32
"""Number of held-out rows to compare."""
SPREAD = 2
"""So many times as far off as any log-probability that was compared those of other tokens may be."""
CUT = 0.25
"""Of the answers, so many that are beginnings of the tuned model's show that these are cut."""
GONE = "Nothing was written."
SHOWN = 40
"""Characters of a prompt in a message."""


@dataclass(frozen=True)
class Asked:
    """Outputs of the tuned model and its base for held-out rows.

    Args:
        questions: empty for a task that writes no text.
        compute: returns a model's or an artifact's output per row: log-probabilities of the tuned model's answer,
            the numbers of its own answer, or raw outputs (NoRuntime: the artifact cannot be run).
        tuned, base: the outputs of these two.
        stop: tokens that end an answer.
        settings: the tuned model's own generation settings.
        options: the generation options of the evaluation.
        mean: mean of a regression model's targets (`mean_of`).
    """

    split: str
    questions: Sequence[Question]
    compute: Callable[[Runtime], list[np.ndarray]]
    tuned: Sequence[np.ndarray]
    base: Sequence[np.ndarray]
    stop: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    mean: float = 0.0

    def far(self, some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> list[float]:
        """Return the distance of two models' outputs per row: of mean log-probabilities, else of numbers.

        For numbers it is ‖some - others‖, divided by ‖tuned - mean‖ or its root mean square over rows, whichever is
        larger. The root mean square is taken as at least a thousandth of |mean|, so that rounding stays small.
        """
        if self.questions:
            return list(map(log_probability_distance, some, others))
        # A row whose one number is near the mean has no size of its own.
        sizes = np.array([np.linalg.norm(values - self.mean) for values in self.tuned])
        usual = max(float(np.sqrt(np.mean(sizes**2))), abs(self.mean) / 1000) or 1.0
        return [distance(a, b, size=max(own, usual)) for a, b, own in zip(some, others, sizes.tolist(), strict=True)]


def ask_own(
    run: Run, ready: ReadyTask, exporter: Exporter, source: ExportSource, count: int, data: str | None
) -> Asked:
    """Compute the outputs of the tuned model and its base, in float32."""
    split, rows = held_out_rows(ready, run.directory, data)
    exact = exact_run(run, today=True)
    question_list, stop, settings = list[Question](), tuple[int, ...](), dict[str, Any]()
    compute: Callable[[Runtime], list[np.ndarray]]
    with exact.model() as loaded:
        if gives_prompts(ready.task):
            stop, settings = stop_tokens(loaded), _own_settings(loaded)
            prompts, longest = informative_prompts(
                ready, rows, loaded, count, run, otherwise=", or export with --no-verify"
            )
            question_list = questions(loaded, list(prompts.values()), longest, stop)
            compute = partial(_log_probabilities, question_list)
        else:
            examples = informative_examples(ready, rows, count, run.recipe.seed)
            if numbers := exporter.asks(source):
                compute = partial(_numbers, ready, [rows[i] for i in examples], numbers)
            else:
                compute = partial(
                    _outputs, ready, [ready.task.collate([example], ready.processor) for example in examples.values()]
                )
        tuned = compute(Runtime(model=loaded))
    with exact.model(base=True) as loaded:
        base = compute(Runtime(model=loaded))
    options = run.recipe.evaluation.generate.options
    return Asked(split, question_list, compute, tuned, base, stop, settings, options, mean_of(ready.task))


def _own_settings(loaded: LoadedModel) -> dict[str, Any]:
    """Return a module's generation settings; {} if it has none."""
    own: Any = getattr(loaded.module, "generation_config", None)
    return {} if own is None else own.to_dict()


def exact_run(run: Run, *, today: bool = False) -> Run:
    """Return a run whose models compute in float32; with `today`, chat templates write today's date, as servers do."""
    code = run.trust_code
    exact = Run(run.path, registry=run.registry, listener=run.listener, precision="float32", trust_code=code)
    exact.day = None if today else run.day
    return exact


def proof_of(
    run: Run,
    ready: ReadyTask,
    exporter: Exporter,
    source: ExportSource,
    folder: Path,
    exported: Exported,
    own: Asked | None,
) -> tuple[Proof | None, str]:
    """Run the artifact on the same rows; return the proof, or the reason why there is none.

    Raises:
        ExportDiffers: the artifact is not the tuned model.
        ProgramFailed: the program that runs the artifact fails, so that nothing is known.
    """
    if own is None:
        return None, "left out by --no-verify"
    if not overrides(exporter, "open"):
        return None, f"format {exporter.name!r} has no program that could be asked"
    ready.listener.phase("verify")
    who = f"the {exporter.name} export of {str(run.path)!r}"
    try:
        with opened_by(exporter, folder, source) as opened:
            compared = (_ask if own.questions else _compute)(who, ready, own, opened)
    except NoRuntime as error:
        ready.listener.message(f"not verified: {error}")
        return None, str(error)
    except FtengineError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(str(error))}"
        raise ProgramFailed(f"the {exporter.name} export could not be opened: {reason}.") from error
    values = compared.values
    judged = likeness(own.far(values, own.tuned), own.far(values, own.base), exported.noise, run.recipe.seed)
    if judged.decision == "base" or judged.decision == "neither":
        raise ExportDiffers(f"{who} {_fault(run, own, values, judged)}. {GONE}")
    if fault := _answers_fault(run, own, compared, exported.noise):
        raise ExportDiffers(f"{who} is not the tuned model: {fault}. {GONE}")
    low, high = judged.interval
    proof = Proof(
        runtime=compared.program,
        split=own.split,
        questions=judged.examples,
        decision=judged.decision,
        from_tuned=judged.from_tuned,
        from_base=judged.from_base,
        closer=judged.closer,
        low=low,
        high=high,
        p=judged.p,
        noise=judged.noise,
        furthest=judged.furthest,
        same_answers=compared.same(own),
        needed=judged.needed,
    )
    return proof, ""


def far_rows(judged: Likeness, prompts: Sequence[Prompt]) -> str:
    """Describe the rows that are further from the tuned model than rounding explains, the furthest first.

    Args:
        prompts: the prompts, to quote the furthest one; empty if rows are not text.
    """
    first = judged.far[0]
    prompt = prompts[first] if prompts else None
    last = prompt.messages[-1]["content"] if prompt and prompt.messages else prompt.text if prompt else ""
    text = " ".join(texts_of(last))
    quoted = f" ({one_line(text)[:SHOWN]!r})" if text else ""
    numbers = ", ".join(str(i + 1) for i in judged.far[:5]) + (", …" if len(judged.far) > 5 else "")
    return (
        f"{len(judged.far):,} of {judged.examples:,} rows differ from the tuned model, number {numbers}{quoted}: by up "
        f"to {number(judged.furthest)}, while rounding explains {number(ROW * judged.noise)} for one row"
    )


def missing_eos(answers: Sequence[str], asked_questions: Sequence[Question]) -> bool:
    """Return whether most answers continue after the tuned model's answer ended."""
    ended = [
        (a.strip(), question.text.strip())
        for a, question in zip(answers, asked_questions, strict=True)
        if question.ended
    ]
    return sum(a.startswith(text) and a != text for a, text in ended) > len(ended) / 2


@dataclass(frozen=True)
class Compared:
    """Outputs of an artifact for the rows.

    Args:
        program: name of the program that ran the artifact.
        values: what `Asked.compute` returns.
        answers: its greedy answers; None if the task writes no text.
    """

    program: str
    values: list[np.ndarray]
    answers: Sequence[str] | None = None

    def same(self, own: Asked) -> int | None:
        """Return how many answers equal the tuned model's."""
        if self.answers is None:
            return None
        return sum(
            complete_text(a) == complete_text(question.text)
            for a, question in zip(self.answers, own.questions, strict=True)
        )


def _ask(who: str, ready: ReadyTask, own: Asked, opened: Runtime) -> Compared:
    """Let an artifact answer the questions (ExportDiffers: it reads other tokens, or does not end its answers)."""
    if opened.model is not None:
        if lost := sorted(set(own.stop) - set(end_tokens(opened.model.module))):
            names = ", ".join(map(repr, ready.processor.convert_ids_to_tokens(lost)))
            raise ExportDiffers(f"{who} lacks tokens that end an answer in its generation settings: {names}. {GONE}")
        if faults := settings_faults(_own_settings(opened.model), own.settings, own.options):
            raise ExportDiffers(f"{who} has other generation settings than were measured: {'; '.join(faults)}. {GONE}")
    runtime = as_runtime(opened, torch.device("cpu"))
    unread = (
        token_fault(question.prompt, runtime.encode(question.prompt), ready.processor) for question in own.questions
    )
    if fault := next(filter(None, unread), ""):
        raise ExportDiffers(f"{who} reads other tokens than were measured: {fault} {GONE}")
    scores = own.compute(runtime)
    lengths = [max(1, len(question.answer) + (8 if question.ended else 0)) for question in own.questions]
    answers = [runtime.answer(question.prompt, n) for question, n in zip(own.questions, lengths, strict=True)]
    if missing_eos(answers, own.questions):
        raise ExportDiffers(f"{who} continues where the tuned model ends its answer: end tokens are missing. {GONE}")
    return Compared(runtime.name, scores, answers)


def _compute(who: str, ready: ReadyTask, own: Asked, opened: Runtime) -> Compared:
    """Let an artifact compute numbers or raw outputs."""
    outputs = own.compute(opened)
    return Compared(opened.name, outputs)


def _answers_fault(run: Run, own: Asked, compared: Compared, noise: float) -> str:
    """Describe answers that differ by more than log-probabilities explain; "" if there are none.

    Rounding swaps two tokens only if their log-probabilities differ by at most twice the error of one.
    """
    if compared.answers is None or compared.same(own) == len(own.questions):
        return ""
    with exact_run(run).model() as loaded:
        behind = np.array(divergences(loaded, own.questions, compared.answers, own.stop))
    cut = int(np.isnan(behind).sum())
    if cut >= max(2, CUT * len(behind)):
        return f"{cut} of {len(behind)} answers end before the tuned model's: they are cut, or stop at something else"
    off = max(float(np.abs(np.nan_to_num(a - b)).max()) for a, b in zip(compared.values, own.tuned, strict=True))
    explained, largest = max(noise, 2 * SPREAD * off), float(np.nanmax(behind))
    if largest <= explained:
        return ""
    return (
        f"{len(behind) - (compared.same(own) or 0)} of {len(behind)} answers differ, {int((behind > explained).sum())} "
        f"of them by more than log-probabilities explain: they go on with a token that is up to {number(largest)} less "
        f"likely than the tuned model's own, and log-probabilities that are off by at most {number(off)} explain "
        f"{number(explained)}. Other generation settings are served, such as a penalty or sampling, or other answers"
    )


def _log_probabilities(asked_questions: Sequence[Question], opened: Runtime) -> list[np.ndarray]:
    runtime = opened if opened.model is None else ModuleRuntime(opened.model)
    return scored(runtime.log_probabilities, asked_questions)


def _numbers(ready: ReadyTask, rows: Sequence[Any], options: Sequence[Mapping[str, Any]], opened: Runtime) -> list[Any]:
    """Return the numbers in the answers to each row, concatenated over all options."""
    if (model := opened.model) is None:
        answers = [opened.infer(rows, answer_options) for answer_options in options]
    else:
        with torch.no_grad(), evaluating(model.module):
            answers = [ready.task.infer(model, rows, answer_options) for answer_options in options]
    return [np.array([x for answer in of_row for x in _flat(answer)]) for of_row in zip(*answers, strict=True)]


def _flat(answer: Any) -> Iterator[float]:
    """Yield the numbers of an answer, in the order of its keys."""
    if isinstance(answer, Mapping):
        answer = [answer[key] for key in sorted(answer)]
    if isinstance(answer, (int, float)):
        yield float(answer)
    elif isinstance(answer, np.ndarray):
        yield from answer.ravel().tolist()
    elif isinstance(answer, (list, tuple)):
        for item in answer:
            yield from _flat(item)


def _outputs(ready: ReadyTask, batches: Sequence[Any], opened: Runtime) -> list[np.ndarray]:
    if opened.model is None:
        raise NoRuntime(f"task {ready.task.name!r} has no prompts to send to this program.")
    module = opened.model.module.eval()
    device = next(module.parameters()).device
    with torch.no_grad():
        outputs = [outputs_of(ready.task, module, to_device(batch, device)) for batch in batches]
    return [output.double().cpu().numpy().ravel() for output in outputs]


def _fault(run: Run, own: Asked, values: Sequence[np.ndarray], judged: Likeness) -> str:
    """Describe what an artifact is, if not the tuned model."""
    if not _is_base(judged):

        def distance_to(loaded: LoadedModel) -> float:
            return float(np.nanmean(own.far(own.compute(Runtime(model=loaded)), values)))

        if fault := find_fault(exact_run(run, today=True), distance_to, judged.noise, judged.from_tuned):
            return f"is not the tuned model: it answers as the tuned model would {fault.reason}"
    return _what(judged, own)


def _is_base(judged: Likeness) -> bool:
    """Return whether an artifact is the base, and not merely nearer to it than to the tuned model."""
    return judged.decision == "base" and judged.from_base <= judged.noise


def _what(judged: Likeness, own: Asked) -> str:
    figures = f"from the tuned model {number(judged.from_tuned)}, from the base {number(judged.from_base)}"
    if _is_base(judged):
        return f"answers like the base, not like the tuned model ({figures})"
    if judged.from_tuned <= judged.noise:
        return f"is not the tuned model: {far_rows(judged, [question.prompt for question in own.questions])}"
    return (
        f"is not the tuned model: {'log-probabilities' if own.questions else 'its numbers'} are {figures}, and "
        f"rounding to the format's numbers explains {number(judged.noise)}"
    )
