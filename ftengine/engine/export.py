"""Exporting a finished run, and proving that the artifact computes what was measured."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ftengine.api import Exported, Exporter, ExportSource
from ftengine.api.task_sorts import gives_prompts
from ftengine.chat import stop_tokens
from ftengine.engine.artifact import out_of_reach, source_of_artifact
from ftengine.engine.experiment import described
from ftengine.engine.finished import Run
from ftengine.engine.merge import check_merge
from ftengine.engine.prepared_data import ReadyTask
from ftengine.engine.prepared_model import load_base
from ftengine.engine.proof import ROWS, Asked, ask_own, proof_of
from ftengine.errors import NotExportable, ProgramFailed, RunError
from ftengine.identity import file_hashes, folder_hash
from ftengine.report.card import CARD, card
from ftengine.run.directory import PARTIAL, RunDirectory, write_folder
from ftengine.run.environment import versions
from ftengine.run.export import Manifest, Proof
from ftengine.run.records import RunRecords
from ftengine.run.seal import require_saved, require_sealed


def export_run(
    run: Run, exporter: Exporter, out: str | Path, *, verify: bool = True, rows: int = ROWS, data: str | None = None
) -> Manifest:
    """Write a run in an exporter's format and verify the artifact; it is kept unless it differs from the tuned model.

    Args:
        run: a finished run.
        out: a folder that does not exist yet or is empty.
        verify: whether to compare the artifact with the tuned model.
        rows: how many held-out rows it is compared on, of the file `data` or of the run's own split.

    Raises:
        NotExportable: the format cannot hold what was trained.
        RunError: `out` is in use, or the trained part has changed since it was saved.
        ExportDiffers: the artifact differs from the tuned model; nothing is written.
    """
    target = RunDirectory(out)
    target.require_free("another folder")
    require_as_finished(run)
    ready = run.ready()
    if ready.skeleton is None:
        raise NotExportable(
            f"loader {ready.experiment.loader.name!r} builds no skeleton, so the exporter cannot check the model "
            "before its weights are loaded. Use `ftengine merge`."
        )
    exporter.check_options()
    with _workshop(target.path) as workshop:
        source = _source(run, ready, workshop)
        exporter.check(source)
        tuned: Asked | None = None
        if verify:
            tuned = ask_own(run, ready, exporter, source, rows, data)
        source = replace(source, stop=_stop(run) if tuned is None else tuned.stop)
        made: list[Manifest] = []
        opener = copy.deepcopy(exporter)  # it remembers nothing of what is written

        def fill(folder: Path) -> None:
            ready.listener.phase("export")
            exported = exporter.export(source, folder)
            proof, failed = None, False
            try:
                if tuned is not None:
                    exporter.check_artifact(folder, source)
                artifact_source = source_of_artifact(exporter, source, workshop / "trained")
                with out_of_reach(workshop):
                    proof, unproven = proof_of(run, ready, opener, artifact_source, folder, exported, tuned)
            except ProgramFailed as error:
                unproven, failed = str(error), True
                ready.listener.message(f"cannot tell whether this is the tuned model: {unproven}")
            manifest = _manifest(run, exporter, exported, proof, unproven, failed)
            if not (folder / CARD).exists():
                origin = ready.experiment.loader.provenance(run.recipe.model.source)
                tag = ready.task.traits.pipeline_tag
                text = card(RunRecords.read(run.path), run.verdict, manifest, exported, origin, tag)
                (folder / CARD).write_text(text, encoding="utf-8")
            made.append(manifest.model_copy(update={"files": file_hashes(folder)}))
            made[0].write(RunDirectory(folder))

        write_folder(target.path, fill)
    return made[0]


def require_as_finished(run: Run) -> None:
    """Raise RunError if the trained part or the records of a run have changed since they were saved."""
    run.directory.require_finished("evaluation.json")
    require_sealed(run.directory)
    require_saved(run.trained)
    if not run.facts.files:
        raise RunError(
            f"the trained part {str(run.trained)!r} was saved by a version that recorded no hashes, so ftengine cannot "
            "tell whether it has changed since then. Train again."
        )


def _manifest(
    run: Run, exporter: Exporter, exported: Exported, proof: Proof | None, unproven: str, failed: bool
) -> Manifest:
    return Manifest(
        ftengine=versions()["ftengine"],
        format=described(exporter),
        facts=dict(exported.facts),
        run=str(run.path),
        base=str(run.facts.base["source"]),
        strategy=run.facts.strategy["name"],
        trained=folder_hash(run.trained),
        proof=proof,
        unproven=unproven,
        cannot_tell=failed,
    )


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
        task=ready.task,
        head=loaded.head,
        module=loaded.module,
        processor=ready.processor,
        trained=run.trained,
        generation=run.recipe.evaluation.generate.options,
        max_length=loaded.max_length,
        check_merge=lambda: check_merge(ready.experiment.make_strategy()),
        merged=merge,
        load_base=lambda: load_base(run.without_model(check_source=True)),
    )


def _stop(run: Run) -> tuple[int, ...]:
    """Return the tokens that end an answer, for an export that is not verified."""
    if not gives_prompts(run.task):
        return ()
    with run.model() as loaded:
        return stop_tokens(loaded)


@contextmanager
def _workshop(target: Path) -> Iterator[Path]:
    """Yield a temporary folder on the target's file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PARTIAL, dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
