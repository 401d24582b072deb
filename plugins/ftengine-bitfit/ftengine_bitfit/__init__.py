"""Train the biases alone (BitFit, Ben Zaken et al. 2021)."""

from ftengine import hookimpl


@hookimpl
def ftengine_strategies() -> list[type]:
    """Return the class; it is imported when this hook is called."""
    from ftengine_bitfit.strategy import BitfitStrategy

    return [BitfitStrategy]
