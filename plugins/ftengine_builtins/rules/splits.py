"""Rule `validation-and-test`."""

import math
from collections.abc import Iterator

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.text import capitalized, ends, number
from ftengine_builtins.rules.baseline import OF_NO_USE

LOSS = "loss"
"""The figure that a validation and the measured split both have: of a token's loss."""

RATIO, FEWEST = 2.0, 20
"""How many times the validation loss that of the test split is where the two cannot be of one source, and the rows of
both below which nothing is said."""

ERRORS = 4.0
"""Standard errors of their difference by which they differ at least; the validation's is that of the test split by the
number of its rows."""


class ValidationAndTest(Rule):
    """Finds a test split that is answered far worse than the validation split, which was not trained on either."""

    name = "validation-and-test"
    order = 1

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        evaluation, tuned = run.evaluation, run.evaluation.tuned.get(LOSS)
        points = {point.step: point.validation_loss for point in run.validations}
        if evaluation.split != "test" or not points or tuned is None or (interval := ends(tuned)) is None:
            return
        held, rows = points.get(run.kept_step, list(points.values())[-1]), run.audit.splits["validation"].rows
        error = (interval[1] - interval[0]) / (2 * 1.96) * math.sqrt(1 + tuned.n / max(1, rows))
        if min(rows, tuned.n) < FEWEST or tuned.value < max(RATIO * held, held + ERRORS * error):
            return
        if any(set(leak["between"]) == {"train", "validation"} for leak in run.audit.facts.get("leaks", ())):
            return  # then it is the validation split that says nothing
        brief = "check that the answers of the test split belong to its inputs, and that it is of the same source: "
        brief += f"loss {number(tuned.value, 3)}, of the validation split {number(held, 3)}"
        yield Finding(
            kind="splits",
            level="alarm",
            text=f"{capitalized(brief)}.",
            brief=brief,
            explains=(*OF_NO_USE, "quality", "learning", "over-fitting", "labels"),
            figures={"validation": held, "test": tuned},
        )
