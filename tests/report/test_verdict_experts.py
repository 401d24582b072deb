"""What the verdict says of a mixture of experts."""

from dataclasses import replace

import pytest

from ftengine.testing.runs import stored_runs
from ftengine_builtins.rules import ExpertLoads
from ftengine_builtins.strategies.routing import LAYERS, summary


def layer(name="mlp", before=0.9, after=0.9, few=0, experts=8):
    entropies = {"entropy_before": before, "entropy_after": after}
    return {"layer": name, "experts": experts, "few": few, "busiest_before": 0.2, "busiest_after": 0.3, **entropies}


CASES = {
    "sound": ([layer(), layer(after=0.85)], []),
    "collapsed": ([layer(), layer("deep", after=0.4)], [("layers", 1)]),
    "starved": ([layer(few=3), layer()], [("experts", 16)]),
    "frozen experts": ([layer(few=None), layer(few=None)], []),
    "uncounted": ([layer(after=None, before=None)], []),
    "dense": ([], []),
}


@pytest.mark.parametrize("case", CASES)
def test_loads_are_judged(case):
    layers, expected = CASES[case]
    stored = stored_runs()["a run without held-out data"]
    facts = {"name": "lora", **(summary(layers) if layers else {}), LAYERS: layers}
    training = stored.training.model_copy(update={"regularizers": (facts,)})
    found = [*ExpertLoads().judge(replace(stored, training=training))]
    assert [next(iter(finding.figures.items())) for finding in found] == expected
    assert {(finding.kind, finding.level) for finding in found} <= {("experts", "note")}
    assert all("deep" in finding.places for finding in found if case == "collapsed")
