"""Statistics that every evaluator shares: resampled sums, intervals, paired comparison."""
