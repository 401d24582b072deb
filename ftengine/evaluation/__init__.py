"""Measuring base and tuned model: the table of predictions, figures, intervals, tests, slices.

The names here are public for rules of other distributions, which judge differences.
"""

from ftengine.evaluation.chance import CHANCE, got_worse, holm, is_beyond_chance, near_end

__all__ = ["CHANCE", "got_worse", "holm", "is_beyond_chance", "near_end"]
