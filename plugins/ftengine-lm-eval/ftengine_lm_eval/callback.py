"""The callback: the harness runs when a run's trained part is saved, before the verdict is written."""

from __future__ import annotations

import os

from ftengine.api import Callback, Event, Saved, Started
from ftengine.errors import RecipeError
from ftengine_lm_eval.options import Options

TRAINED = "adapter"
"""The folder of a run that holds its trained part (docs/runs.md); other folders that are saved are checkpoints."""


class LmEval(Callback):
    """Run tasks of lm-evaluation-harness on the base and the tuned model, and write lm_eval.json into the run.

    The figures stand in the run's verdict. A task that cannot be loaded is told of before training, and the run goes
    on without the harness; `ftengine lm-eval RUN` measures a finished run at any time.
    """

    name = "lm-eval"
    citation = "Biderman et al. 2024, arXiv:2405.14782"

    Config = Options

    def check_options(self) -> None:
        """Refuse tasks that do not exist, and files that would execute code (InputError)."""
        from ftengine_lm_eval.tasks import check_names

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RecipeError(
                "lm-eval measures in one process. Take it out of the recipe, and measure the finished run with "
                "`ftengine lm-eval RUN --tasks NAME`."
            )
        check_names(self.config.tasks)

    def on(self, event: Event) -> None:
        from ftengine_lm_eval.harness import measure, require_language_model
        from ftengine_lm_eval.tasks import load_tasks

        if isinstance(event, Started):
            require_language_model(event.recipe["task"])
            load_tasks(self.config.tasks)  # data sets are fetched now, so that a missing one is known before training
        elif isinstance(event, Saved) and event.folder.name == TRAINED:
            measure(event.run, self.config)
