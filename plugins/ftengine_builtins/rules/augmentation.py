"""Rule `augmented-training`."""

from collections.abc import Iterator
from statistics import fmean

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.text import capitalized, listed, number

RATIO, STEPS, FIRST, LEFT = 2.0, 20, 5, 0.5
"""How many times the loss of the last steps, of changed examples, that of training examples as they stand is, where
augmenters taught the model another task; how many steps that is the mean of; and the share of the first steps' loss
that is left. Without augmenters, and with those that help, the loss as examples stand is the lower one: no dropout, and
no change. Digits that were all flipped came to 4.4 and 0.9."""


class AugmentedTraining(Rule):
    """Finds augmenters that the model has learnt instead of the data: it is worse on unchanged training examples.

    Their loss in the last validation is compared with that of the last training steps, which augmenters changed.
    """

    name = "augmented-training"
    order = 3

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        names = [augmenter["name"] for augmenter in run.recipe.augment]
        if not names or not run.validations or len(run.steps) < 2 * STEPS:
            return
        plain, changed = run.validations[-1].training_loss, fmean(step.loss for step in run.steps[-STEPS:])
        if plain is None or plain < max(RATIO * changed, LEFT * fmean(step.loss for step in run.steps[:FIRST])):
            return
        shown = listed([*dict.fromkeys(names)])
        brief = f"take {shown} out of augment, or lower its probability: the loss on unchanged training examples is "
        brief += f"{number(plain, 3)}, on augmented ones {number(changed, 3)}"
        yield Finding(
            kind="learning",
            level="alarm",
            text=f"{capitalized(brief)}. The model has learnt the augmented ones instead.",
            brief=brief,
            explains=("quality", "calibration", "classes", "over-fitting", "learning", "rows", "worse", "labels"),
            figures={"augmenters": names, "as_they_stand": plain, "changed": changed},
        )
