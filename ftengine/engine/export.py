"""Exporting a finished run, with the proof that what was written is what was measured."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftengine.api import Exported, Exporter, ExportSource, LoadedModel, Prompt, Runtime, overrides
from ftengine.data.answer_origin import content_of_files
from ftengine.engine.evaluate import held_out_rows
from ftengine.engine.experiment import described
from ftengine.engine.finished import Run
from ftengine.engine.merge import check_merge, outputs_of
from ftengine.engine.prepared_data import ReadyTask
from ftengine.engine.prepared_model import load_base
from ftengine.errors import DataError, ExportDiffers, NoRuntime, NotExportable, RunError
from ftengine.evaluation.asked import Question, apart, as_runtime, end_tokens, questions, scored, whole
from ftengine.evaluation.likeness import Likeness, likeness
from ftengine.evaluation.prompt_faults import token_fault
from ftengine.model import GenerationOptions, log_probabilities, stop_tokens
from ftengine.report.card import CARD, card
from ftengine.run.directory import PARTIAL, SIDECAR, RunDirectory, file_hashes, write_folder
from ftengine.run.environment import versions
from ftengine.run.export import Manifest, Proof
from ftengine.run.records import RunRecords
from ftengine.text import counted, number
from ftengine.training.losses import to_device

ROWS = 32
"""Held-out rows that are asked."""
MOST_TOKENS = 48
"""Of an answer; log-probabilities of more tell no more."""
GONE = "Nothing was written."


def export_run(
    run: Run, exporter: Exporter, out: str | Path, *, verify: bool = True, rows: int = ROWS, data: str | None = None
) -> Manifest:
    """Write a run in an exporter's format, ask the artifact, and keep it where it is the tuned model.

    Args:
        run: a finished run.
        out: a folder that does not exist yet or is empty.
        verify: whether the artifact is asked.
        rows: how many held-out rows it is asked, of a data file or of the run's own split.

    Raises:
        NotExportable: the format has no place for what was trained.
        RunError: `out` is in use, or the trained part is not as it was saved.
        ExportDiffers: the artifact is not the tuned model; nothing is written.
    """
    target = RunDirectory(out)
    target.require_free("another folder")
    require_saved_part(run)
    ready = run.ready()
    if ready.skeleton is None:
        raise NotExportable(
            f"loader {ready.experiment.loader.name!r} builds no skeleton, so what the model is cannot be known before "
            "its weights are read. Use `ftengine merge`."
        )
    exporter.check_options()
    with _workshop(target.path) as workshop:
        source = _source(run, ready, workshop)
        exporter.check(source)
        tuned: Asked | None = None
        if verify:
            tuned = _ask_own(run, ready, rows, data)
        source = replace(source, stop=_stop(run) if tuned is None else tuned.stop)
        made: list[Manifest] = []

        def fill(folder: Path) -> None:
            ready.listener.phase("export")
            exported = exporter.export(source, folder)
            proof, unproven = _proof(run, ready, exporter, source, folder, exported, tuned)
            manifest = _manifest(run, exporter, exported, proof, unproven)
            if not (folder / CARD).exists():
                text = card(RunRecords.read(run.path), run.verdict, manifest, exported.usage)
                (folder / CARD).write_text(text, encoding="utf-8")
            made.append(manifest.model_copy(update={"files": file_hashes(folder)}))
            made[0].write(RunDirectory(folder))

        write_folder(target.path, fill)
    return made[0]


def require_saved_part(run: Run) -> None:
    """Refuse a trained part whose files are not those that were checked when it was saved (RunError)."""
    now = {name: one for name, one in file_hashes(run.trained).items() if name != SIDECAR}
    differing = sorted(name for name, one in run.facts.files.items() if now.get(name) != one)
    if differing or not run.facts.files:
        what = f"{differing[0]!r} of it" if differing else "what it was"
        raise RunError(
            f"the trained part {str(run.trained)!r} is not as it was saved and checked: {what} has changed or is not "
            "known. Restore it from a copy, or train again."
        )


@dataclass(frozen=True)
class Asked:
    """What the tuned model and its base make of held-out rows.

    Args:
        questions: none of a task that writes no text; then `batches` of one row each are what is computed.
        tuned, base: of each row the log-probabilities of the answer, or the raw outputs.
    """

    split: str
    questions: Sequence[Question]
    batches: Sequence[Mapping[str, Any]]
    tuned: Sequence[np.ndarray]
    base: Sequence[np.ndarray]
    stop: tuple[int, ...]


def _ask_own(run: Run, ready: ReadyTask, count: int, data: str | None) -> Asked:
    """Ask the tuned model and its base, in float32."""
    split, rows = held_out_rows(ready, run.directory, data)
    exact = exact_run(run)
    asks = overrides(ready.task, "prompt")
    asked, batches = list[Question](), list[Any]()
    stop: tuple[int, ...] = ()
    with exact.model() as loaded:
        if asks:
            stop = tuple(dict.fromkeys(stop_tokens(loaded)))
            prompts, longest = prompts_of(ready, rows, loaded, count, run)
            asked = questions(loaded, prompts, longest, stop)
        else:
            batches = [ready.task.collate([one], ready.processor) for one in _features(ready, rows, count)]
        tuned = _computed(ready, loaded, asked, batches)
    with exact.model(base=True) as loaded:
        base = _computed(ready, loaded, asked, batches)
    return Asked(split, asked, batches, tuned, base, stop)


def exact_run(run: Run) -> Run:
    """Return a run whose models compute in float32."""
    return Run(run.path, registry=run.registry, listener=run.listener, precision="float32", trust_code=run.trust_code)


def prompts_of(ready: ReadyTask, rows: Any, loaded: LoadedModel, count: int, run: Run) -> tuple[list[Prompt], int]:
    """Return the first distinct prompts that leave room for their answers, and the longest answer in tokens."""
    longest = min(GenerationOptions.read(_generation(run)).max_new_tokens, MOST_TOKENS)
    prompts: dict[tuple[int, ...], Prompt] = {}
    for row in rows:
        try:
            prompt = ready.task.prompt(row, loaded)
        except DataError:
            continue
        room = loaded.max_length is None or len(prompt.ids) + longest <= loaded.max_length
        if room and prompt.ids:
            prompts.setdefault(tuple(prompt.ids), prompt)
        if len(prompts) == count:
            break
    if len(prompts) < 2:
        raise DataError(
            f"{rows.source} has {counted(len(prompts), 'row')} that can be asked, too few for a proof. Name more rows "
            "with --data FILE, or export with --no-verify."
        )
    return list(prompts.values()), longest


def _features(ready: ReadyTask, rows: Any, count: int) -> Iterator[Any]:
    for i in range(min(count, len(rows))):
        try:
            yield ready.task.encode(rows[i], ready.processor, max_length=ready.max_length)
        except DataError:
            continue


def _computed(
    ready: ReadyTask, loaded: LoadedModel, asked: Sequence[Question], batches: Sequence[Any]
) -> list[np.ndarray]:
    if asked:
        return scored(lambda ids, answer: log_probabilities(loaded, ids, answer), asked)
    device = next(loaded.module.parameters()).device
    with torch.no_grad():
        outputs = [outputs_of(ready.task, loaded.module, to_device(batch, device)) for batch in batches]
    return [one.double().cpu().numpy().ravel() for one in outputs]


def _relative(some: Sequence[np.ndarray], others: Sequence[np.ndarray], size: Sequence[np.ndarray]) -> list[float]:
    """Return ‖some - others‖ / ‖size‖ of each row; infinite where shapes differ."""
    return [
        float(np.linalg.norm(a - b) / np.linalg.norm(c)) if a.shape == b.shape else float("inf")
        for a, b, c in zip(some, others, size, strict=True)
    ]


def _proof(
    run: Run,
    ready: ReadyTask,
    exporter: Exporter,
    source: ExportSource,
    folder: Path,
    exported: Exported,
    own: Asked | None,
) -> tuple[Proof | None, str]:
    """Ask the artifact; return the proof, or why there is none (ExportDiffers: it is something else)."""
    if own is None:
        return None, "left out by --no-verify"
    if not overrides(exporter, "open"):
        return None, f"format {exporter.name!r} has no program that could be asked"
    ready.listener.phase("verify")
    who = f"the {exporter.name} export of {str(run.path)!r}"
    try:
        with exporter.open(folder, source) as opened:
            program, same, distances = (_ask if own.questions else _compute)(who, ready, own, opened)
    except NoRuntime as error:
        ready.listener.message(f"not verified: {error}")
        return None, str(error)
    judged = likeness(*distances, exported.noise, run.recipe.seed)
    if judged.decision == "base" or judged.decision == "neither":
        raise ExportDiffers(f"{who} {_what(judged)}. {GONE}")
    low, high = judged.interval
    proof = Proof(
        runtime=program,
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
        same_answers=same,
        needed=judged.needed,
    )
    return proof, ""


Compared = tuple[str, int | None, tuple[list[float], list[float]]]
"""The program that was asked, how many answers are the same, and distances from the tuned model and from the base."""


def _ask(who: str, ready: ReadyTask, own: Asked, opened: Runtime | LoadedModel) -> Compared:
    """Ask an artifact the questions (ExportDiffers: it reads other tokens, or does not end its answers)."""
    if isinstance(opened, LoadedModel) and (lost := sorted(set(own.stop) - set(end_tokens(opened.module)))):
        names = ", ".join(map(repr, ready.processor.convert_ids_to_tokens(lost)))
        raise ExportDiffers(f"{who} lacks tokens that end an answer in its generation settings: {names}. {GONE}")
    runtime = as_runtime(opened, torch.device("cpu"))
    faults = (token_fault(one.prompt, runtime.encode(one.prompt), ready.processor) for one in own.questions)
    if fault := next(filter(None, faults), ""):
        raise ExportDiffers(f"{who} reads other tokens than were measured: {fault} {GONE}")
    scores = scored(runtime.log_probabilities, own.questions)
    lengths = [max(1, len(one.answer) + (8 if one.ended else 0)) for one in own.questions]
    answers = [runtime.answer(one.prompt, n) for one, n in zip(own.questions, lengths, strict=True)]
    if endless(answers, own.questions):
        raise ExportDiffers(f"{who} goes on where the tuned model ends its answer: it lacks end tokens. {GONE}")
    same = sum(whole(a) == whole(one.text) for a, one in zip(answers, own.questions, strict=True))
    return runtime.name, same, (apart(scores, own.tuned), apart(scores, own.base))


def _compute(who: str, ready: ReadyTask, own: Asked, opened: Runtime | LoadedModel) -> Compared:
    """Compare raw outputs (NoRuntime: the program gives none)."""
    if not isinstance(opened, LoadedModel):
        raise NoRuntime(f"task {ready.task.name!r} gives no prompts that this program could be asked.")
    opened.module.eval()
    outputs = _computed(ready, opened, (), own.batches)
    return "transformers", None, (_relative(outputs, own.tuned, own.tuned), _relative(outputs, own.base, own.tuned))


def _what(judged: Likeness) -> str:
    figures = f"from the tuned model {number(judged.from_tuned)}, from the base {number(judged.from_base)}"
    if judged.decision == "base":
        return f"answers like the base, not like the tuned model ({figures})"
    return (
        f"is not the tuned model: log-probabilities are {figures}, and rounding to the format's numbers explains "
        f"{number(judged.noise)}"
    )


def endless(answers: Sequence[str], asked: Sequence[Question]) -> bool:
    """Say whether most answers that ended, where they begin as they should, go on behind their end."""
    ended = [(a.strip(), one.text.strip()) for a, one in zip(answers, asked, strict=True) if one.ended]
    return sum(a.startswith(text) and a != text for a, text in ended) > len(ended) / 2


def _manifest(run: Run, exporter: Exporter, exported: Exported, proof: Proof | None, unproven: str) -> Manifest:
    return Manifest(
        ftengine=versions()["ftengine"],
        format=described(exporter),
        facts=dict(exported.facts),
        run=str(run.path),
        base=str(run.facts.base["source"]),
        strategy=run.facts.strategy["name"],
        trained=content_of_files(run.trained),
        proof=proof,
        unproven=unproven,
    )


def _generation(run: Run) -> dict[str, Any]:
    return dict(run.recipe.evaluation.generate.model_extra or {})


def _source(run: Run, ready: ReadyTask, workshop: Path) -> ExportSource:
    assert ready.skeleton is not None
    loaded = ready.skeleton.loaded
    merged: dict[str, Path] = {}

    def merge(dtype: str) -> Path:
        if dtype not in merged:
            merged[dtype] = workshop / f"merged-{dtype}"
            run.merge(merged[dtype], dtype)
        return merged[dtype]

    return ExportSource(
        base=run.recipe.model.source,
        head=loaded.head,
        module=loaded.module,
        processor=ready.processor,
        trained=run.trained,
        generation=_generation(run),
        max_length=loaded.max_length,
        check_merge=lambda: check_merge(ready.experiment.make_strategy()),
        merged=merge,
        load_base=lambda: load_base(run.without_model(check_source=True)),
    )


def _stop(run: Run) -> tuple[int, ...]:
    """Return the tokens that end an answer, of a model that nobody asked."""
    if not overrides(run.task, "prompt"):
        return ()
    with run.model() as loaded:
        return tuple(dict.fromkeys(stop_tokens(loaded)))


@contextmanager
def _workshop(target: Path) -> Iterator[Path]:
    """Give a folder on the target's file system for what is made on the way; it goes in any case."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PARTIAL, dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
