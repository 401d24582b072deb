"""The options of `ftengine bench`: read by click, and by argparse where there is no click."""

from __future__ import annotations

Options = dict[str, tuple[str, str | list[str] | None, str]]
"""By flag: what stands for its value, the default, and the help. What has a list may be given several times."""

KERNELS: Options = {
    "--preset": ("NAME", None, "Layers of a model's block: smollm2-135m (default), llama3-8b, bert-base or gpt2."),
    "--shape": ("MxKxN", [], "A layer by tokens, inputs and outputs, e.g. 512x2048x2048; may be given several times."),
    "--tokens": ("LIST", "512", "Tokens for the preset's layers."),
    "--ranks": ("LIST", "8,16,64", "Ranks, separated by commas."),
    "--dropout": ("LIST", "0,0.05", "Dropout probabilities."),
    "--dtypes": (
        *("LIST", "auto"),
        "Of inputs and frozen weights: float32 and bfloat16 on a CPU, bfloat16 and float16 on a GPU; auto is both.",
    ),
    "--device": ("NAME", "auto", "auto, cpu or cuda."),
    "--providers": (
        *("LIST", "auto"),
        "What to time: frozen, eager, peft, torch-compile, reference, compiled; auto is what is there.",
    ),
    "--instruction-set": (
        *("NAME", "auto"),
        "Of the compiled CPU kernels, e.g. avx2; auto is the best that the processor has.",
    ),
    "--launch": (
        *("NAME", "call"),
        "On a GPU, graph replays forward and backward from CUDA graphs, as short layers need it; call launches each.",
    ),
    "--seconds": ("FLOAT", "0.5", "Time for each provider of a layer, and for each operator."),
    "--json": ("FILE", None, "Write everything that was measured."),
    "--plot": ("FILE", None, "Draw the overheads (.png, .svg or .pdf)."),
}

EXPERTS: Options = {
    "--preset": ("NAME", "olmoe", "Sizes of a model's layer of experts: olmoe, qwen3-30b-a3b or gpt-oss-20b."),
    "--scale": ("N", "1", "Divide both widths by this, where memory or time lacks."),
    "--tokens": ("N", "512", "Tokens."),
    "--rank": ("N", "8", "Rank of each expert's update."),
    "--dropout": ("FLOAT", "0", "Dropout probability; PEFT has none here."),
    "--dtype": ("NAME", "float32", "Of inputs and frozen weights: float32 or bfloat16."),
    "--device": ("NAME", "auto", "auto, cpu or cuda."),
    "--providers": (
        *("LIST", "auto"),
        "What to time: frozen, loop, grouped, torch-compile, peft, ftengine; auto leaves torch-compile out on a CPU.",
    ),
    "--seconds": ("FLOAT", "0.5", "Time for each provider, seven rounds at least."),
    "--json": ("FILE", None, "Write everything that was measured."),
}

COMPARE: Options = {
    "--by": (
        *("NAME", "file"),
        "file: our rows, a column for each file; device: a table of devices in Markdown, as in docs/benchmarks.md.",
    ),
    "--fail-over": (
        *("PERCENT", None),
        "Exit with 1 if a row of the compiled kernels is slower than in the first file by more, e.g. 5%.",
    ),
}
