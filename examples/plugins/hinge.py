"""A loss of preferences as a third party adds it."""

from ftengine_builtins.tasks import Preference, PreferenceLoss


class Hinge(PreferenceLoss):
    """max(0, 1 - β·Δ), β 0.1: a hinge on DPO's margin (Zhao et al. 2023, SLiC-HF, arXiv:2305.10425)."""

    name = "hinge"

    def loss(self, margin):
        return (1 - margin).relu()


class HingePreference(Preference):
    """Prefer one answer to another, with a hinge among the losses."""

    name = "hinge-preference"
    losses = (Hinge, *Preference.losses)
