"""Checks of exporters: they refuse models before weights are read, and the artifact equals the tuned model."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftengine.api import Conversation, Exporter, ExportSource, LoadedModel, Message, Prompt, Runtime, overrides
from ftengine.chat import has_template, render, stop_tokens
from ftengine.equivalence import log_probability_distance
from ftengine.errors import InputError, NoRuntime, NotExportable
from ftengine.evaluation.questions import Question, as_runtime, questions, scored
from ftengine.generation import log_probabilities
from ftengine.model import save_model
from ftengine.model.saving import save_part
from ftengine.plugins.registry import AUTO, Registry
from ftengine.testing.checks import Checks, run_checks, skip
from ftengine.testing.opening import LogProbabilities, answers_of, in_another_process, refused
from ftengine.testing.samples import fixture, on_meta

ALONE = "open() must use only files that export() wrote into the folder, not the exporter's memory or the run"
ASKED = ("What is the capital of France?", "How do I reset my password?", "Good morning! How are you today?")


def check_exporter(
    make: Callable[[], Exporter],
    source: ExportSource | None = None,
    tuned: LoadedModel | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Check an exporter on a run of a language model; checks whose program is not installed are skipped.

    Args:
        make: returns a fresh exporter.
        source: the run, with `tuned`, its model; by default a small Llama that was tuned.
        expected_failed_checks: names of checks that fail, with reasons.
    """
    with tempfile.TemporaryDirectory() as folder:
        of = exported_run(Path(folder)) if source is None or tuned is None else (source, tuned)
        run_checks(ExporterChecks(make, *of), expected_failed_checks)


@dataclass
class ExporterChecks(Checks):
    """Checks of an exporter on one run."""

    make: Callable[[], Exporter]
    source: ExportSource
    tuned: LoadedModel

    def it_refuses_before_weights_are_read(self) -> None:
        def read(*_: object) -> None:
            raise AssertionError("check() reads weights; it has `source.module`, without weights, and adapters' files")

        try:
            self.make().check(replace(self.source, merged=read, load_base=read, stop=()))  # type: ignore[arg-type]
        except NotExportable:
            pass
        except InputError as error:
            raise AssertionError(f"check() raises {type(error).__name__}; it must be NotExportable") from None

    def it_writes_into_its_folder_alone(self) -> None:
        with self._exported() as (_, _, folder, _):
            assert [path.name for path in folder.parent.iterdir()] == [folder.name], "it writes beside its folder"
            assert any(folder.iterdir()), "it writes nothing"

    def the_artifact_is_the_tuned_model(self) -> None:
        questions, own = self._own()
        with self._exported() as (exporter, source, folder, noise):

            def ask(opened: Runtime) -> None:
                runtime = as_runtime(opened, torch.device("cpu"))
                assert runtime.name, "the program has no name"
                for question in questions:
                    ids = list(runtime.encode(question.prompt))
                    assert ids == list(question.prompt.ids), f"the program reads {ids}, measured {question.prompt.ids}"
                _require_near(scored(runtime.log_probabilities, questions), own, noise)

            _opened(exporter, source, folder, ask)

    def nothing_but_its_files_is_opened(self) -> None:
        questions, own = self._own()
        log_probabilities = LogProbabilities(questions)
        with self._exported() as (exporter, source, folder, noise), tempfile.TemporaryDirectory() as place:
            _opened(exporter, source, folder, lambda opened: None)  # or there is no such program
            empty = Path(place) / "empty"
            empty.mkdir()
            try:
                answers_of(exporter, source, empty, log_probabilities)
            # Whatever it raises, it does miss the files.
            except (Exception, SystemExit):
                pass
            else:
                raise AssertionError(f"open() answers from an empty folder too: {ALONE}")
            try:
                reopened = in_another_process(exporter, source, folder, log_probabilities, Path(place))
            except pickle.PicklingError as error:
                skip(f"the exporter cannot be sent to another process ({error}); define its class in a module")
            except AssertionError as error:
                raise AssertionError(f"{error}: {ALONE}") from None
            _require_near(reopened, own, noise)

    def _own(self) -> tuple[Sequence[Question], list[np.ndarray]]:
        """Return questions, and the tuned model's log-probabilities of its own answers."""
        loaded = self.tuned
        prompts = [_prompt(loaded, text) for text in ASKED]
        asked_questions = questions(loaded, prompts, 8, self.source.stop)
        return asked_questions, scored(lambda ids, answer: log_probabilities(loaded, ids, answer), asked_questions)

    @contextmanager
    def _exported(self) -> Iterator[tuple[Exporter, ExportSource, Path, float]]:
        """Give a new exporter, what it may open the artifact with, the artifact, and its noise."""
        exporter = self.make()
        try:
            exporter.check(self.source)
        except NotExportable as error:
            skip(str(error))
        with tempfile.TemporaryDirectory() as parent:
            folder, made_of = Path(parent) / "artifact" / "out", Path(parent) / "made of"
            folder.mkdir(parents=True)
            made_of.mkdir()
            exported = exporter.export(_copied(self.source, made_of), folder)
            shutil.rmtree(made_of)
            nowhere = replace(self.source, merged=refused, check_merge=refused, trained=made_of)
            yield self.make(), nowhere, folder, exported.noise


def _opened(exporter: Exporter, source: ExportSource, folder: Path, ask: Callable[[Runtime], Any]) -> None:
    """Open the artifact and call `ask`; skip if there is no program for it."""
    if not overrides(exporter, "open"):
        skip("it has no program that could be asked")
    try:
        answers_of(exporter, source, folder, ask)
    except NoRuntime as error:
        skip(str(error))


def _require_near(actual: Sequence[np.ndarray], own: Sequence[np.ndarray], noise: float) -> None:
    furthest = np.nanmax([log_probability_distance(*answer) for answer in zip(actual, own, strict=True)])
    assert furthest <= noise, f"log-probabilities differ by {furthest:.3g}; the exporter says {noise}"


def _copied(source: ExportSource, place: Path) -> ExportSource:
    """Return a run whose files are copies, which can be taken away."""

    def merged(dtype: str) -> Path:
        folder = place / f"merged-{dtype}"
        if not folder.exists():
            shutil.copytree(source.merged(dtype), folder)
        return folder

    return replace(source, merged=merged, trained=shutil.copytree(source.trained, place / "trained"))


def exported_run(folder: Path) -> tuple[ExportSource, LoadedModel]:
    """Make a run of a small tuned Llama in a folder; return its `ExportSource` and the tuned model."""
    model = fixture("causal-lm")
    base, loaded = model.load(), model.load()
    save_model(base.module, base.processor, folder / "base")
    loaded.source = str(folder / "base")
    strategy = Registry().usual("strategy", {"name": AUTO}, "strategy")()
    strategy.prepare(loaded)
    generator = torch.Generator().manual_seed(0)
    for parameter in loaded.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    (folder / "trained").mkdir()
    save_part(strategy, loaded, folder / "trained")
    strategy.merge(loaded)
    save_model(loaded.module, loaded.processor, folder / "merged")
    source = ExportSource(
        base=loaded.source,
        task=model.task,
        head=loaded.head,
        module=on_meta(loaded).module,
        processor=loaded.processor,
        trained=folder / "trained",
        generation={},
        max_length=loaded.max_length,
        check_merge=lambda: None,
        merged=lambda dtype: folder / "merged",
        load_base=partial(_base, model.head),
        stop=stop_tokens(loaded),
    )
    loaded.module.eval()
    return source, loaded


def _base(head: str) -> LoadedModel:
    return fixture(head).load()


def _prompt(loaded: LoadedModel, text: str) -> Prompt:
    if not has_template(loaded.processor):
        return Prompt(loaded.processor(text)["input_ids"], text=text)
    messages = [{"role": "user", "content": text}]
    ids = loaded.processor(
        render(loaded.processor, Conversation((Message("user", text),)), prompt=True), add_special_tokens=False
    )["input_ids"]
    return Prompt(ids, messages)
