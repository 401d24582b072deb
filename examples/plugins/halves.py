"""An exporter: `ftengine export RUN --to halves OUT`.

`source` gives the merged folder in a dtype, which `merge` has checked, and the trained part's own. `open` gives what
was written back as its own program runs it, a `Runtime`: `Runtime(model=…)` of a module of transformers', a subclass
with `encode`, `log_probabilities` and `answer` where another program writes text, or with `infer` where it answers with
vectors or scores. It is asked of a new exporter, whose `source` has the base and its processor, but neither the merged
model nor the trained part. The proof is the engine's (docs/serving.md).
"""

from contextlib import contextmanager
from shutil import copytree

import torch

from ftengine.api import Exported, Exporter, LoadedModel, Runtime
from ftengine.errors import NotExportable
from ftengine.model import open_model


class Halves(Exporter):
    """The merged model in float16."""

    name = "halves"

    def check(self, source):
        if not hasattr(source.module, "save_pretrained"):
            raise NotExportable(f"{type(source.module).__name__} is no model of transformers. Use `ftengine merge`.")
        source.check_merge()

    def export(self, source, folder):
        copytree(source.merged("float16"), folder, dirs_exist_ok=True)
        return Exported(noise=0.02)

    @contextmanager
    def open(self, folder, source):
        module, _ = open_model(folder, torch.float32)
        yield Runtime(model=LoadedModel(module, source.processor, str(folder), source.head))
