"""A model loader that finds files and leaves the reading to another one: `shared://NAME`, from a folder of a team.

A loader that builds its own module returns `LoadedModel(module, processor, source, head)`, names in `new_modules` what
it initialised newly, from torch's global generator, which the recipe seeds, and reads weights from safetensors: a
model's file is data, and nothing in it is executed. A loader that changes weights as it reads them, as a quantiser
does, sets `loaded.fingerprint = fingerprint_base(loaded)` (`ftengine.identity`) before it does. A module without a
configuration as transformers has it is recognised by its weights, its code and its layers' `extra_repr`; put further
settings into `fingerprint["config"]`.
"""

from dataclasses import replace
from pathlib import Path

from pydantic import Field

from ftengine import api, registry_of


class Shared(api.ModelLoader):
    """Load a model by its name from a shared folder: `shared://NAME`."""

    name = "shared"

    class Config(api.Config):
        folder: str = Field("~/models", min_length=1, description="the folder that holds the models' folders")

    def accepts(self, source):
        return source.startswith("shared://")

    def check_source(self, source):
        self.transformers().check_source(self.place(source))

    def load_processor(self, source):
        return self.transformers().load_processor(self.place(source))

    def load(self, request):
        loaded = self.transformers().load(replace(request, source=self.place(request.source)))
        return replace(loaded, source=request.source)

    def load_skeleton(self, request):
        loaded = self.transformers().load_skeleton(replace(request, source=self.place(request.source)))
        return replace(loaded, source=request.source)

    def place(self, source):
        return str(Path(self.config.folder).expanduser() / source.removeprefix("shared://"))

    def transformers(self):
        return registry_of().build("loader", "transformers", "model.loader")
