"""An augmenter of texts.

`InputAugmenter` is the same for any input; options of one's own derive from `AugmenterConfig`. An augmenter of whole
rows has `augment(row, task, rng)`, and finds texts, whatever their columns are called, with `task.view(row)` and
`task.with_inputs(row, inputs)`.
"""

from ftengine.api import TextAugmenter


class Shout(TextAugmenter):
    """Write texts in capitals."""

    name = "shout"

    def change(self, text, rng):
        return text.upper()
