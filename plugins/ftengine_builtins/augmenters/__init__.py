"""Augmenters: what makes another training example of one, without changing what is to be answered."""
