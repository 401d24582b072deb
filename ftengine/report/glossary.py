"""The page's words, a line each, for whoever meets them for the first time."""

GLOSSARY = (
    ("base, tuned", "The model before and after fine-tuning. Both answered the same held-out examples."),
    (
        "training, validation, test split",
        "What the model learnt from; what chose the weights that are kept; what nothing was chosen by.",
    ),
    (
        "95 % interval",
        "Where the figure would lie for all such examples: an interval made like this holds the true value 95 times in "
        "100. The fewer examples, the wider.",
    ),
    (
        "p",
        "How often chance alone would make at least such a difference if there were none. “Beyond chance” means that p "
        "is at most 0.05 and that the interval leaves out zero.",
    ),
    (
        "smallest difference that would show",
        "The true difference that a test set of this size would find in four of five cases. Smaller ones stay hidden.",
    ),
    ("accuracy", "Share of examples that were answered rightly."),
    (
        "macro F1",
        "For each class the balance of what was found and what was claimed rightly; then the mean over classes, so "
        "that rare ones count as much as frequent ones.",
    ),
    (
        "perplexity",
        "How surprised a language model is by the text: as if it chose among so many words each time. Lower is better.",
    ),
    ("loss", "What training makes small; the negative log-probability of the right answer."),
    (
        "over-fitting",
        "Learning the training examples by heart rather than what they have in common: the training loss falls, the "
        "validation loss rises.",
    ),
    (
        "calibration error",
        "How far stated confidence and accuracy lie apart on average. A temperature divides the logits to bring them "
        "together; it changes no answer.",
    ),
    ("slice", "The examples that share a value in some column, such as one language or one customer."),
    ("forgetting", "Getting worse at what the base could do and the training data does not hold."),
    ("memorisation", "Giving training text back word for word, more than one would by guessing well."),
    ("leak", "A held-out example that is in the training split too. Figures on it measure memory."),
)
