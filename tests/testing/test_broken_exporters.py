"""Exporters: a sound one passes; one that opens something else than what it wrote fails the check that is meant."""

from contextlib import contextmanager
from pathlib import Path
from shutil import copytree
from typing import ClassVar

import pytest
import torch
from broken import failed

from ftengine.api import Exported, Exporter, LoadedModel, Runtime
from ftengine.model import open_model, save_model

pytestmark = pytest.mark.slow

TUNED, ALONE = "the_artifact_is_the_tuned_model", "nothing_but_its_files_is_opened"


def opened(folder, source):
    module, _ = open_model(Path(folder), torch.float32)
    return LoadedModel(module, source.processor, str(folder), source.head)


class Whole(Exporter):
    """The merged model."""

    name = "whole"

    def check(self, source):
        source.check_merge()

    def export(self, source, folder):
        copytree(source.merged("float32"), folder, dirs_exist_ok=True)
        return Exported(noise=0.002)

    @contextmanager
    def open(self, folder, source):
        yield Runtime(model=opened(folder, source))


class Base(Whole):
    """The base."""

    def export(self, source, folder):
        base = source.load_base()
        save_model(base.module, base.processor, folder)
        return Exported(noise=0.002)


class OpensModule(Base):
    """The base; hands back the run's model."""

    @contextmanager
    def open(self, folder, source):
        yield Runtime(model=LoadedModel(source.module, source.processor, str(folder), source.head))


class OpensMerged(Base):
    """The base; opens the merged model."""

    @contextmanager
    def open(self, folder, source):
        yield Runtime(model=opened(source.merged("float32"), source))


class OpensTrained(Base):
    """The base; opens it with the run's trained part."""

    @contextmanager
    def open(self, folder, source):
        from peft import PeftModel

        loaded = source.load_base()
        loaded.module = PeftModel.from_pretrained(loaded.module, source.trained)
        yield Runtime(model=loaded)


class KeepsPath(Base):
    """The base, and where the merged model lies."""

    def export(self, source, folder):
        exported = super().export(source, folder)
        (folder / "merged.txt").write_text(str(source.merged("float32")))
        return exported

    @contextmanager
    def open(self, folder, source):
        yield Runtime(model=opened((folder / "merged.txt").read_text(), source))


class Links(Whole):
    """Links to the merged model, whose folder goes away."""

    def export(self, source, folder):
        for file in Path(source.merged("float32")).iterdir():
            (folder / file.name).symlink_to(file)
        return Exported(noise=0.002)


class Remembers(Base):
    """The base; keeps the merged model in its class."""

    kept: ClassVar[list[LoadedModel]] = []

    def export(self, source, folder):
        self.kept[:] = [opened(source.merged("float32"), source)]
        return super().export(source, folder)

    @contextmanager
    def open(self, folder, source):
        yield Runtime(model=self.kept[0])


class RemembersBeside(Remembers):
    """The same, but looks whether its files are there."""

    @contextmanager
    def open(self, folder, source):
        assert any(folder.iterdir())
        yield Runtime(model=self.kept[0] if self.kept else opened(folder, source))


def test_a_sound_one_passes():
    assert failed(Whole) == {}


@pytest.mark.parametrize(
    ("cls", "checks"),
    [
        (Base, {TUNED, ALONE}),
        (OpensModule, {TUNED, ALONE}),
        (OpensMerged, {TUNED, ALONE}),
        (OpensTrained, {TUNED, ALONE}),
        (KeepsPath, {TUNED, ALONE}),
        (Links, {TUNED, ALONE}),
        (Remembers, {ALONE}),
        (RemembersBeside, {ALONE}),
    ],
)
def test_one_that_opens_something_else_fails(cls, checks):
    assert failed(cls).keys() == checks
