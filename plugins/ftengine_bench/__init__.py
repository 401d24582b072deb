"""Benchmarks of the low-rank kernels: the overhead of a layer over the frozen layer, compared with other libraries.

`ftengine bench` runs them. The package needs only torch and the standard library, so `python -m ftengine_bench` runs on
a machine without ftengine's requirements. PEFT and matplotlib are used if they are installed.
"""
