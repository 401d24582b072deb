"""Ways to compute what a model computes with less work."""
