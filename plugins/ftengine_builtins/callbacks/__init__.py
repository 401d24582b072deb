"""Callbacks in the box."""

from ftengine_builtins.callbacks.trackers import TRACKERS, TensorBoard, Tracker

__all__ = ["TRACKERS", "TensorBoard", "Tracker"]
