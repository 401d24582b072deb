"""Callbacks in the box."""
