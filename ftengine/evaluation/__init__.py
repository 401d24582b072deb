"""Measuring base and tuned model: the table of predictions, figures, intervals, tests, slices.

What rules of any distribution need to judge differences is public here.
"""

from ftengine.evaluation.chance import CHANCE, got_worse, holm, is_beyond_chance, near_end

__all__ = ["CHANCE", "got_worse", "holm", "is_beyond_chance", "near_end"]
