"""A row of a measurement, and what makes a real measurement small."""

from ftengine_bench.report import Row

SMALL = {"shape": ["24x32x16"], "ranks": "2", "dropout": "0,0.25", "seconds": "0.001"}
"""Settings of a measurement that takes no time."""


def row(**fields):
    """Return a row of which a test names what matters."""
    layer = {"m": 2, "k": 4, "n": 4, "rank": 1, "dtype": "float32", "p": 0.0, "layers": [], "transposed": False}
    times = {"phase": "both", "provider": "compiled", "p20": 1.0, "p50": 1.0, "p80": 1.0, "repetitions": 7}
    figures = {"overhead": 1.0, "recovered": None, "peak_bytes": 0, "saved_bytes": 0}
    limits = {"operations": 0, "bytes": 0, "roofline_share": 0.5}
    return Row(**{**layer, **times, **figures, **limits, **fields})
