"""Computing shared prefixes of rows once: the fast path, the prefix tree of the rows' tokens, and attention over it."""

from ftengine_builtins.fast_paths.shared_prefix.path import SharedPrefix

__all__ = ["SharedPrefix"]
