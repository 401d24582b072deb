"""Runs written by hand are spoilt for a verdict, and what is found in it."""

from report_samples import METRICS, change, figure


def found(verdict, kind, level=None):
    """Return findings of a kind, but for that of quality in the headline."""
    others = (f for f in verdict.findings if f is not verdict.quality)
    return [f for f in others if f.kind == kind and level in (None, f.level)]


def alarms(verdict):
    return {finding.kind for finding in verdict.findings if finding.level == "alarm"}


def put(path, value):
    """Return a change of a run's files: the value at a dotted path."""
    *parents, last = path.split(".")

    def spoil(files):
        for name in parents:
            files = files[name]
        files[last] = value

    return spoil


def losses(*points):
    """Return a change of validations: (validation loss, training loss) each."""

    def spoil(files):
        for line, (held, seen) in zip((x for x in files["metrics"] if "validation_loss" in x), points, strict=True):
            line |= {"validation_loss": held, "training_loss": seen}

    return spoil


def steps(*values, tokens=()):
    """Return a change of the training losses, a step each, and of the tokens that are trained on in each."""

    def spoil(files):
        line = next(one for one in files["metrics"] if "loss" in one)
        files["metrics"] = [line | {"step": i, "loss": loss} for i, loss in enumerate(values, 1)]
        for one, count in zip(files["metrics"], tokens, strict=False):
            one["trained_tokens"] = count

    return spoil


def reached(evaluator="own", metric="drift", **told):
    """Return a change: an evaluator of anybody's that declares its metric and tells what is reached by it."""

    def spoil(files):
        evaluation = files["evaluation"]
        metrics = {metric: {"label": "drift", "higher_is_better": True, "evaluator": evaluator, "primary": True}}
        evaluation["metrics"] = METRICS | metrics
        for side, value in (("base", 0.2), ("tuned", 0.5)):
            evaluation[side][metric] = figure(value)
        evaluation["difference"][metric] = change(0.3)
        evaluation["details"]["tuned"][evaluator] = {
            "baseline": {"answer": "b", "share": 0.1, "figures": {metric: 0.3}, "total": 400} | told
        }

    return spoil
