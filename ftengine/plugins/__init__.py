"""Plugins: what they may offer, how they are found, and what is registered."""
