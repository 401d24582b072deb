"""The page's words, a line each, for whoever meets them for the first time; metrics say what they mean themselves."""

GLOSSARY = (
    ("base, tuned", "The model before and after fine-tuning. Both answered the same held-out examples."),
    (
        "training, validation, test split",
        "What the model learnt from; what chose the weights that are kept; what nothing was chosen by.",
    ),
    (
        "95 % interval",
        "Where the figure would lie for all such examples: an interval made like this holds the true value 95 times in "
        "100. The fewer distinct examples, the wider.",
    ),
    (
        "p",
        "How often chance alone would make at least such a difference if there were none. “Beyond chance” means that p "
        "is at most 0.05 and that the interval leaves out zero.",
    ),
    (
        "adjusted p",
        "The p of one of several comparisons, made larger for their number: of twenty, luck puts one beyond chance.",
    ),
    ("score", "How well one example was answered, e.g. the probability of the right label; a higher one is better."),
    (
        "smallest difference that would show",
        "The true difference that a test set of this size would find in four of five cases. Smaller ones stay hidden.",
    ),
    ("training loss", "What training makes small; the negative log-probability of the right answer."),
    (
        "over-fitting",
        "Learning the training examples by heart rather than what they have in common: the training loss falls, the "
        "validation loss rises.",
    ),
    ("slice", "The examples that share a value in some column, such as one language or one customer."),
    ("leak", "A held-out example that is in the training split too. Figures on it measure memory."),
)
