"""Facts about PEFT's methods that PEFT does not provide, by PEFT's name of the method."""

from __future__ import annotations

ABOUT: dict[str, tuple[str, str]] = {
    "ADALORA": ("low-rank updates as singular values and vectors, whose ranks move between layers", "2303.10512"),
    "ADAPTION_PROMPT": ("learnt tokens that the attention of the last layers reads (LLaMA-Adapter)", "2303.16199"),
    "BEFT": ("biases added to value projections", "2509.15974"),
    "BOFT": ("orthogonal rotations of weights, factored as butterflies", "2311.06243"),
    "C3A": ("block-circular convolutions", "2407.19342"),
    "DEFT": ("a projection taken out of the weights, and a low-rank update put in", ""),
    "DELORA": ("low-rank updates whose strength is apart from their direction", "2503.18225"),
    "FOURIERFT": ("a few Fourier coefficients of the weights' update", "2405.03003"),
    "GLORA": ("updates that scale and shift weights and biases", ""),
    "GRALORA": ("low-rank updates of a weight's blocks", ""),
    "HIRA": ("low-rank updates that multiply the weights", "https://openreview.net/forum?id=TwJrTz9cRS"),
    "HRA": ("orthogonal rotations of weights by Householder reflections", "2405.17484"),
    "IA3": ("scales of keys, values and feed-forward activations, (IA)³", "2205.05638"),
    "LILY": ("low-rank updates whose parts layers share", "2407.09946"),
    "LN_TUNING": ("the normalisation layers themselves", "2312.11420"),
    "LOHA": ("element-wise products of low-rank updates", "2108.06098"),
    "LOKR": ("Kronecker products of low-rank updates", "2309.14859"),
    "LORA": ("low-rank updates, as PEFT computes them", "2106.09685"),
    "MISS": ("one small matrix that is repeated over the weight (formerly Bone)", "2409.15371"),
    "OFT": ("orthogonal rotations of weights", "2306.07280"),
    "OSF": ("the weights' smaller singular values and their vectors", ""),
    "PEANUT": ("updates that a small network computes from the weights", "2410.01870"),
    "PSOFT": (
        "rotations within the weights' principal subspace",
        "https://openreview.net/forum?id=FSHrinMArK",
    ),
    "PVERA": ("VeRA with updates that are drawn at random while training", "2512.07703"),
    "RANDLORA": ("sums of random low-rank matrices, scaled by what is learnt", "2502.00987"),
    "ROAD": ("rotations of pairs of activations", "2409.00119"),
    "SHIRA": ("a random choice of single weights", ""),
    "SUPERTUNING": ("single weights, chosen by their size", "2607.09287"),
    "TINYLORA": ("a handful of numbers that random tensors spread over the weights", "2602.04118"),
    "TRAINABLE_TOKENS": ("the embeddings of some tokens", ""),
    "UNILORA": ("one vector that random indices spread over all low-rank updates", "2506.00799"),
    "VBLORA": ("low-rank updates put together from a shared bank of vectors", "2405.15179"),
    "VERA": ("scales of random low-rank matrices that all layers share", "2310.11454"),
    "WAVEFT": ("a few wavelet coefficients of the weights' update", ""),
}
"""What trains, and the paper as PEFT cites it: a number of arXiv, an address, or "" where PEFT names none."""

_BUILT_IN = "ftengine's own strategy {!r} writes the same files"
_UNSEEN = "it reads the weights' values when it is prepared; ftengine checks a recipe on a model without values first"

LEFT_OUT: dict[str, str] = {
    "ADAMSS": _UNSEEN,
    "CARTRIDGE": "it is distilled from long documents by a procedure of its own",
    "CPT": "its virtual tokens need labels of their own, which tasks do not give",
    "FROD": _UNSEEN,
    "MULTITASK_PROMPT_TUNING": "it needs the number of a task with each example",
    "POLY": "it needs the number of a task with each example",
    "PREFIX_TUNING": _BUILT_IN.format("prefix"),
    "PROMPT_TUNING": _BUILT_IN.format("prompt"),
    "P_TUNING": "its virtual tokens lengthen the model's outputs; ftengine's own 'prompt' is the nearest",
    "SHADOW": "it trains on a second loss, which a strategy cannot add, and not on a model without values",
    "XLORA": "it mixes adapters that were trained before",
}
"""Methods of PEFT that are no strategies, with the reason."""

UNMERGEABLE: dict[str, str] = {
    "ADAPTION_PROMPT": "what it adds depends on the input",
    "LILY": "what it adds to a weight depends on the input",
}
"""Methods whose trained part cannot be folded into the weights, with the reason."""

NEEDS_FLOAT32: dict[str, str] = {
    "PSOFT": "its file does not hold the subspace that it rotates, and rounded weights have another one",
}
"""Methods whose files mean the same only on weights that are not rounded, with the reason."""

IGNORED: dict[str, frozenset[str]] = {
    "ADALORA": frozenset(
        {
            *("alpha_pattern", "ensure_weight_tying", "init_lora_weights", "lora_bias", "r", "use_dora", "use_rslora"),
            *("rank_pattern", "total_step"),  # what training comes to, and the run's own
        }
    ),
}
"""Fields that a method takes over from LoRA's and does not follow, or that are no choice."""

PEFT_CHOOSES: frozenset[str] = frozenset({"ADAPTION_PROMPT", "BEFT", "IA3", "LN_TUNING", "TRAINABLE_TOKENS"})
"""Methods that are not for all linear layers; without `target_modules` PEFT chooses by the model's architecture."""

SCALES: tuple[str, ...] = ("ia3_l", "boft_s")
"""Parameters that multiply activations and start at one, though PEFT holds them as matrices."""

LORA_INITS = "true, false, gaussian, orthogonal, olora, pissa or pissa_niter_N"
"""Initialisations of LoRA that need no data and no quantised base."""


def name_of(peft_type: str) -> str:
    """Return the strategy's name of a method, such as 'peft-ln-tuning' for 'LN_TUNING'."""
    return f"peft-{peft_type.lower().replace('_', '-')}"


def citation_of(source: str) -> str:
    """Return a paper as `ftengine plugins show` cites it."""
    return source if source.startswith("http") else f"arXiv:{source}"
