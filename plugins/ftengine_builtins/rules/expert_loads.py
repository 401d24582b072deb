"""The rule about mixtures of experts: whether the router still spreads tokens, and whether experts had enough."""

from collections.abc import Iterator

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.text import capitalized, counted, number
from ftengine_builtins.strategies.routing import FEW, LAYERS

COLLAPSED = 0.2
"""Fall of the entropy of a layer's tokens over its experts, from 0 to 1: from 64 experts alike to 28."""

STARVED = 0.1
"""Share of a model's experts with too few tokens that is reported."""


class ExpertLoads(Rule):
    """Reports routers that came to send most tokens to few experts, and experts that trained on few tokens."""

    name = "expert-loads"
    order = 9

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        layers = [layer for facts in run.training.regularizers for layer in facts.get(LAYERS, ())]
        falls = {
            layer["layer"]: (layer["entropy_before"], layer["entropy_after"])
            for layer in layers
            if None not in (layer["entropy_before"], layer["entropy_after"])
        }
        collapsed = {name: ends for name, ends in falls.items() if ends[0] - ends[1] >= COLLAPSED}
        if collapsed:
            worst = max(collapsed, key=lambda name: collapsed[name][0] - collapsed[name][1])
            first, last = collapsed[worst]
            brief = "add regularize: load-balancing, or leave the router out of strategy.targets: in "
            brief += f"{counted(len(collapsed), 'layer')} of {len(layers):,} the router came to prefer few experts "
            brief += f"(entropy {number(first, 2)} to {number(last, 2)} of {worst})"
            yield _finding(brief, {"layers": len(collapsed), "first": first, "last": last}, tuple(collapsed)[:3])
        few = sum(layer["few"] or 0 for layer in layers)
        experts = sum(layer["experts"] for layer in layers if layer["few"] is not None)
        if few and few >= STARVED * experts:
            brief = f"train on more examples, or set strategy.targets to attention: {few:,} of {experts:,} experts "
            brief += f"trained on fewer than {FEW} tokens"
            yield _finding(brief, {"experts": experts, "few": few})


def _finding(brief: str, figures: dict[str, float], places: tuple[str, ...] = ()) -> Finding:
    text = f"{capitalized(brief)}."
    return Finding(kind="experts", level="note", text=text, brief=brief, figures=figures, places=places)
