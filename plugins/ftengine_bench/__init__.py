"""Benchmarks of the low-rank kernels: what a layer costs above the frozen layer, and how that compares.

`ftengine bench` prints what this package measures. It needs torch and the standard library alone, so that
`python -m ftengine_bench` runs on a machine that has no more; PEFT and matplotlib are used where they are installed.
"""
