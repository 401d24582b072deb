"""Does the model look? Pictures that are blanked or scrambled, and the rule that says what this changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from ftengine import RunRecords
from ftengine.api import Finding, InputAugmenter, RandomSource, Rule
from ftengine.text import number

DONE = {"blank-picture": "blanked", "scramble-picture": "scrambled"}
"""What probes do to pictures."""
SIDE = 4
"""Blocks at each side of a picture that is scrambled."""


class BlankPicture(InputAugmenter):
    """Replace a picture by a grey one of its size, to measure what the model knows without it."""

    name = "blank-picture"
    modality: ClassVar[str] = "image"
    ablates: ClassVar[bool] = True

    def change(self, value: Any, rng: RandomSource) -> Any:
        from PIL import Image

        return Image.new("RGB", value.size, (127, 127, 127))


class ScramblePicture(InputAugmenter):
    """Exchange 16 blocks of a picture at random: its colours stay, and what it shows goes."""

    name = "scramble-picture"
    modality: ClassVar[str] = "image"
    ablates: ClassVar[bool] = True

    def change(self, value: Any, rng: RandomSource) -> Any:
        width, height = value.width // SIDE, value.height // SIDE
        if not width or not height:
            return value
        boxes = [(i * width, j * height, (i + 1) * width, (j + 1) * height) for i in range(SIDE) for j in range(SIDE)]
        blocks, changed = [value.crop(box) for box in boxes], value.copy()
        for box in boxes:
            changed.paste(blocks.pop(rng.randrange(len(blocks))), box[:2])
        return changed


class Looking(Rule):
    """Says whether the tuned model uses the pictures, where evaluation.robustness has blank-picture or
    scramble-picture."""

    name = "looking"
    order = 4

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        if run.recipe.task["name"] not in ("image-text-to-text", "image-preference"):
            return
        probes = [probe for probe in run.evaluation.probes if probe.kind == "ablation"]
        metric = run.headline_metric
        if not probes or metric is None:
            text = "Whether the model uses the pictures was not measured; add evaluation.robustness: [blank-picture]."
            yield Finding(kind="looking", level="note", text=text)
            return
        for probe in probes:
            if (change := probe.against.get(metric)) is None or metric not in probe.tuned:
                continue
            label, clean = run.evaluation.metrics[metric].label, run.evaluation.tuned[metric]
            done = DONE.get(probe.name, f"changed by {probe.name}")
            figures = (
                f"{label} {number(clean.value)} with the pictures, {number(probe.tuned[metric].value)} with them {done}"
            )
            facts = {"metric": metric, "difference": change}
            if change.better is False:
                text = f"The tuned model uses the pictures: {figures}."
                yield Finding(kind="looking", level="good", text=text, figures=facts)
            elif metric in run.evaluation.difference and run.evaluation.difference[metric].better:
                brief = f"the tuned model does not use the pictures: {figures}"
                how = "better without them beyond chance" if change.better else "no difference beyond chance"
                text = f"Check that each picture belongs to its text: {brief}, {how}."
                yield Finding(
                    kind="looking", level="alarm", text=text, brief=brief, explains=("quality",), figures=facts
                )
