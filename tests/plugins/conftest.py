from runs import without_drawings  # noqa: F401
