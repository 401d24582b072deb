"""What an exporter opens for the proof has nothing but the artifact and the base."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from expected import raises

from ftengine import load_run
from ftengine.api import Exported, Exporter, LoadedModel, Runtime
from ftengine.engine.export import export_run
from ftengine.errors import ExportDiffers, PluginError
from ftengine.model import open_model, save_model


class Base(Exporter):
    """The base, opened as something else."""

    name = "base"
    kept = None

    def check(self, source):
        source.check_merge()

    def export(self, source, folder):
        base = source.load_base()
        save_model(base.module, base.processor, folder)
        self.kept = source.merged("float32")
        (folder / "merged.txt").write_text(str(self.kept))
        return Exported(noise=0.02)

    @contextmanager
    def open(self, folder, source):
        module, _ = open_model(Path(self.place(folder, source)), torch.float32)
        yield Runtime(model=LoadedModel(module, source.processor, str(folder), source.head))


class OpensMerged(Base):
    def place(self, folder, source):
        return source.merged("float32")


class Remembers(Base):
    def place(self, folder, source):
        return self.kept or folder


class KeepsPath(Base):
    def place(self, folder, source):
        return (folder / "merged.txt").read_text()


class Bare(Base):
    @contextmanager
    def open(self, folder, source):
        yield LoadedModel(source.module, source.processor, str(folder), source.head)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "kind", "fact"),
    [
        (Bare, PluginError, "Runtime(model=…)"),
        (OpensMerged, PluginError, "open() asks for the merged model"),
        (Remembers, ExportDiffers, "base"),
    ],
)
def test_an_exporter_that_opens_what_it_was_made_of_writes_nothing(served_run, tmp_path, cls, kind, fact):
    with raises(kind, fact):
        export_run(load_run(served_run), cls(), tmp_path / "out", rows=4)
    assert list(tmp_path.iterdir()) == []


def test_an_exporter_that_finds_what_it_was_made_of_by_a_path_in_its_files_proves_nothing(served_run, tmp_path):
    made = export_run(load_run(served_run), KeepsPath(), tmp_path / "out", rows=4)
    assert (made.proof, made.cannot_tell) == (None, True)
