"""What csrc/native.cpp offers; absent where nothing was compiled."""

def cpu_features() -> dict[str, bool]:
    """Return what the instruction sets ask for, and whether processor and operating system offer it."""

def instruction_set(library: str) -> str:
    """Return the instruction set that a loaded library of CPU kernels uses."""

def instruction_sets(library: str) -> str:
    """Return those that it could use here, separated by commas."""

def onednn_from(library: str) -> int:
    """Return the least M·N·K from which layers have oneDNN multiply float32; 2⁶³ - 1: never."""

def use_onednn(library: str, least: int) -> None:
    """Set that."""

def is_intel() -> bool:
    """Say whether the processor is Intel's."""

def use_instruction_set(library: str, name: str) -> None:
    """Make it use one of them, or "auto".

    Raises:
        ValueError: it has no such one, or the processor does not.
        RuntimeError: the library is not loaded.
    """
