"""Checks of merging: the merged model is a plain one, in memory and on disk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from ftengine.api import LoadedModel, Merges
from ftengine.errors import NotMergeable
from ftengine.model import save_model
from ftengine.testing.checks import skip
from ftengine.testing.prepared import Prepared, quiet
from ftengine.testing.values import relative

TOLERANCE = 1e-4
"""Largest difference that merging may make to the outputs, relative to their size: float32's rounding and room."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


class MergeChecks:
    """Checks of a strategy that merges, on one model; each is skipped where it does not."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared, self._outputs = prepared, prepared.outputs

    def merging_keeps_the_outputs(self) -> None:
        """The merged model answers as the unmerged one."""
        before, loaded = self._merged()
        difference = relative(self._outputs(loaded), before)
        assert difference < TOLERANCE, f"merging changes outputs by {difference:.3g} of their size"

    def merging_leaves_nothing_behind(self) -> None:
        """No hook, parametrization, parameter or module is left that the base does not have."""
        _, loaded = self._merged()
        base = self._prepared.load().module
        names = [dict.fromkeys(module.state_dict()) for module in (base, loaded.module)]
        left, gone = [[n for n in one if n not in other] for one, other in (names[::-1], names)]
        advice = "merge has to leave the base's architecture, with other weights"
        assert not left, f"after merge the model has {left[0]!r}, which the base has not: {advice}"
        assert not gone, f"after merge the model lacks {gone[0]!r}, which the base has: {advice}"
        kept = dict(base.named_modules())
        for path, part in loaded.module.named_modules():
            found, wanted = type(part).__name__, type(kept.get(path)).__name__
            assert found == wanted, (
                f"after merge {path or 'the model'!r} is a {found}, in the base a {wanted}: {advice}"
            )
            hooks = sum(len(getattr(part, name)) for name in HOOKS) - sum(len(getattr(kept[path], n)) for n in HOOKS)
            assert hooks <= 0, (
                f"after merge {path or 'the model'!r} still has {hooks} hooks of the strategy: remove them"
            )
            assert "forward" not in vars(part), f"after merge {path!r} keeps the strategy's own forward: take it away"

    def the_merged_model_opens_without_the_strategy(self) -> None:
        """transformers reads what was written, and answers as the unmerged model."""
        before, loaded = self._merged()
        kind: Any = type(self._prepared.load().module)
        if not hasattr(kind, "from_pretrained"):
            skip("the model is none of transformers")
        with tempfile.TemporaryDirectory() as folder, quiet():
            save_model(loaded.module, None, Path(folder))
            opened, told = kind.from_pretrained(folder, output_loading_info=True)
        again = LoadedModel(opened, loaded.processor, loaded.source, loaded.head)
        wrong = [f"{key.replace('_', ' ')}: {sorted(found)[0]}" for key, found in told.items() if found]
        difference = relative(self._outputs(again), before)
        assert difference < TOLERANCE, (
            f"the merged model was saved and opened by transformers alone, and its outputs differ by {difference:.3g} "
            f"of their size: something is not in the base's weights ({'; '.join(wrong) or 'no key is missing'})"
        )

    def _merged(self) -> tuple[Tensor, LoadedModel]:
        """Return the unmerged outputs of a model that trained some steps, and the model merged."""
        strategy, loaded = self._prepared.new()
        if not isinstance(strategy, Merges):
            skip("it does not merge")
        try:
            strategy.check_merge()
        except NotMergeable as error:
            skip(str(error))
        for _ in range(3):
            self._prepared.step(strategy, loaded)
        before = self._outputs(loaded)
        strategy.merge(loaded)
        return before, loaded
