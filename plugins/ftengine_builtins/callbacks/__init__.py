"""Callbacks that ship with ftengine."""

from ftengine_builtins.callbacks.trackers import TRACKERS, TensorBoard, Tracker

__all__ = ["TRACKERS", "TensorBoard", "Tracker"]
