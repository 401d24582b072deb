"""A rule: it judges every run by its records. In a test, `RunRecords.read("runs/support")` opens some.

The worst finding of kind "quality" is the headline; its `text` begins with the figures, and its `brief` is these
figures. A finding that is the cause of others says of which kinds in `explains`. `load_run(FOLDER).conclude()` judges a
finished run again, and writes verdict.json and report.html anew.
"""

from ftengine.api import Finding, Rule


class AccurateEnough(Rule):
    """Raise an alarm where accuracy is below 90 %."""

    name = "accurate-enough"

    def judge(self, run):
        found = run.evaluation.tuned.get("accuracy")
        if found and found.value < 0.9:
            yield Finding(kind="quality", level="alarm", text=f"Accuracy is {found.value:.0%}, below 90 %.")
