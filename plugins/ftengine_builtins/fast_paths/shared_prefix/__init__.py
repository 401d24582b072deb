"""Shared prefixes of rows, computed once: the fast path, the tree of the rows' tokens, attention over it."""

from ftengine_builtins.fast_paths.shared_prefix.path import SharedPrefix

__all__ = ["SharedPrefix"]
