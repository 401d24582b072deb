"""Validation while a model trains: the best weights, and when to stop."""

from __future__ import annotations

import math

from torch import Tensor

from ftengine.api import Validated
from ftengine.data.encoding import EncodedSplit
from ftengine.errors import TrainingError
from ftengine.model import copy_into, state_tensors
from ftengine.parallel.sharding import is_sharded
from ftengine.text import number
from ftengine.training.checkpoint import Progress, load_best, save_best
from ftengine.training.drawing import Drawing
from ftengine.training.losses import SAMPLE, mean_losses
from ftengine.training.modes import share_statistics, train_mode
from ftengine.training.regularizing import Attached
from ftengine.training.setup import Setup
from ftengine.training.steps import batch_tokens, plan_steps

LOSSES = ("validation_loss", "training_loss")
"""Keys of the losses in metrics.jsonl; for a single source followed by a slash and its name."""
REWARD = "validation_reward"
"""The key of an on-policy task's mean reward there."""


class Validator:
    """Validates the weights that would be kept, and saves the best; does nothing without a validation split.

    Args:
        drawing: of an on-policy task, whose loss here is minus the mean of what it measures of held-out rows.
    """

    def __init__(self, setup: Setup, regularizers: Attached, drawing: Drawing | None = None) -> None:
        self.setup, self.regularizers, self._drawing = setup, regularizers, drawing
        self._steps = plan_steps(len(setup.train), setup.section, setup.processes)
        self._sample = None
        if setup.validation is not None and drawing is None:
            steps = min(self._steps.total, self._steps.per_epoch)
            trained = setup.train.take(setup.train.drawn(self._steps.batch, setup.seed, steps))
            self._sample = trained.sample(min(len(setup.validation), SAMPLE), setup.seed)

    def validate(self, progress: Progress) -> None:
        """Measure and record validation loss (TrainingError: not finite) and training loss; save the best weights."""
        setup, section = self.setup, self.setup.section
        with self.regularizers.averaged_weights():
            if self.regularizers.average:
                share_statistics(setup.accelerator, setup.loaded.module)
            losses, examples = self._losses(setup.validation, progress.step)
            loss = losses[""]
            if self._drawing is not None and math.isnan(loss):
                raise TrainingError(
                    f"at step {progress.step} no answer to the validation rows has a reward. Correct the function that "
                    "scores them; `ftengine plan` tries it."
                )
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the validation loss is {loss} at step {progress.step}. Lower train.learning_rate "
                    f"(now {section.learning_rate:g}) or use train.precision float32, in a new run."
                )
            # On training rows without dropout and augmentation, so that the gap is comparable.
            train = {} if self._drawing else self._losses(self._sample)[0]
            better = progress.best_loss is None or loss < progress.best_loss
            writes = setup.accelerator.is_main_process or is_sharded(setup.loaded.module)
            if better and section.keep_best and writes:
                save_best(setup.run, setup.loaded.module)
        if better:
            progress.best_loss, progress.best_step = loss, progress.step
        least = section.early_stopping.min_delta if section.early_stopping else 0.0
        if progress.level is None or loss < progress.level - least:
            progress.level, progress.bad_validations = loss, 0
        else:
            progress.bad_validations += 1
        names, what = LOSSES, f"loss {number(loss, 4)}"
        if self._drawing is not None:
            names, losses, what = (REWARD, ""), {"": -loss}, f"reward {number(-loss, 4)}"
        figures = {
            f"{name}{of}": x
            for name, losses_by_source in zip(names, (losses, train), strict=True)
            for of, x in losses_by_source.items()
        }
        setup.record(Validated, {"step": progress.step, "epoch": progress.epoch, **figures}, losses=examples)
        setup.listener.message(f"step {progress.step}: validation {what}{' (best)' if better else ''}")

    def is_enough(self, progress: Progress) -> bool:
        """Return whether early stopping ends the run, because too many validations brought no improvement."""
        stopping = self.setup.section.early_stopping
        return stopping is not None and progress.bad_validations >= stopping.patience

    def losses(self) -> dict[str, float]:
        """Measure the present weights, for regularizers that choose among several."""
        splits = {"validation_loss": self.setup.validation, "general_loss": self.setup.general}
        return {name: self._losses(split)[0][""] for name, split in splits.items() if split is not None}

    def keep_weights(self, progress: Progress) -> None:
        """Set the weights of the best validation loss, or else the weights after the last step (averaged if so set)."""
        setup, module = self.setup, self.setup.loaded.module
        setup.accelerator.wait_for_everyone()  # the main process may still be writing them
        if setup.section.keep_best and progress.best_step not in (None, progress.step):
            load_best(setup.run, module)
            setup.listener.message(f"keeping the weights of step {progress.best_step} (best validation)")
        elif self.regularizers.average:
            train_mode(module)
            with self.regularizers.averaged_weights():
                share_statistics(setup.accelerator, module)
                weights = {name: tensor.detach().clone() for name, tensor in state_tensors(module).items()}
            copy_into(state_tensors(module), weights, "the weights to keep")
        module.eval()

    def _losses(self, split: EncodedSplit | None, step: int = 0) -> tuple[dict[str, float], Tensor | None]:
        assert split is not None
        setup, together = self.setup, self._steps.batch
        if self._drawing is not None:
            same = split.sample(SAMPLE)  # whatever train.seed is, so that the rewards of several seeds compare
            return {"": -self._drawing.mean(same, step)}, None
        tokens = batch_tokens(setup.section, setup.accelerator.device)
        return mean_losses(setup.accelerator, setup.loaded.module, split, setup.section.batch_size, tokens, together)
