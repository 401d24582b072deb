"""Rule `held-out-shift`."""

from collections.abc import Iterator

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine_builtins.audits.split_shift import EXPLAINED, SplitShift
from ftengine_builtins.rules.fitting import falls_behind, seen_metric
from ftengine_builtins.rules.threshold import no_better_than_a_constant


class HeldOutShift(Rule):
    """Says which held-out rows come from elsewhere than training, an alarm where the tuned model fails on them."""

    name = "held-out-shift"
    order = 9
    about = "where held-out rows come from"

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        for finding in run.audit.findings:
            if finding.source != SplitShift.name or "auc" not in finding.figures:
                continue
            measured = finding.figures["split"] == run.evaluation.split
            if measured and (no_better_than_a_constant(run) or falls_behind(run, seen_metric(run))):
                finding = finding.model_copy(update={"level": "alarm", "explains": EXPLAINED})
            yield finding
