"""Rule `held-out-shift`."""

from collections.abc import Iterator

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.text import capitalized
from ftengine_builtins.audits.answer_cues import AnswerCues
from ftengine_builtins.audits.exchanged_roles import ExchangedRoles
from ftengine_builtins.audits.image_features import ImageFeatures
from ftengine_builtins.audits.label_noise import LabelNoise
from ftengine_builtins.audits.languages import Languages
from ftengine_builtins.audits.misplaced_labels import MisplacedLabels
from ftengine_builtins.audits.split_shift import EXPLAINED, SplitShift
from ftengine_builtins.audits.split_support import SplitSupport
from ftengine_builtins.audits.surface import SHORT_WORD
from ftengine_builtins.audits.surface_features import SurfaceFeatures
from ftengine_builtins.rules.baseline import unmeasured_answers
from ftengine_builtins.rules.fitting import falls_behind, seen_metric
from ftengine_builtins.rules.threshold import GAP_ALARM, no_better_than_a_constant

HARDER = {"group": "new groups are harder than those of training", "time": "later rows are harder than earlier ones"}
"""What a model shows that fails on a split by group or time."""

LACKING = 0.05
"""Share of the measured rows with labels that training lacks, from which that is an alarm whatever the figures."""

JUDGED = (
    SplitShift.name, SurfaceFeatures.name, MisplacedLabels.name, AnswerCues.name, ExchangedRoles.name, Languages.name,
    SplitSupport.name, ImageFeatures.name,
)  # fmt: skip
"""Audits of which findings are judged by what the model made of the rows; of languages, those that splits differ in."""


class HeldOutShift(Rule):
    """Judges held-out rows that seem to come from elsewhere or to have other labels: alarms if the tuned model fails.

    Sound data may look the same to audits: a test set whose words mislead on purpose, or years of a split by time. If
    the model does as well on training rows as on measured ones, nothing is an alarm. If it fails, findings of audits
    `split-shift`, `answer-cues`, `exchanged-roles`, `split-support` and `misplaced-labels` are alarms, and so are rows
    from elsewhere, of another style, or in a language that training lacks. If nothing was measured, an alarm about
    training stands.
    """

    name = "held-out-shift"
    order = 9
    about = "where held-out rows come from"

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        levels = {(finding.source, finding.level) for finding in run.audit.findings}
        noisy, topics = (LabelNoise.name, "alarm") in levels, _has_other_topics(run)
        composed = {f.figures["split"] for f in run.audit.findings if "composition" in f.figures}
        surface = (SurfaceFeatures.name, "note") in levels and not topics
        constant = no_better_than_a_constant(run) or run.headline_metric is None
        for finding in run.audit.findings:
            if finding.source not in JUDGED or (finding.source == Languages.name and "language" not in finding.figures):
                continue
            if noisy and "rule" in finding.figures:  # wrong labels follow no rule
                continue
            slipped = "offset" in finding.figures and finding.figures["split"] == "train"
            slipped = slipped and (noisy or "first" in finding.figures)  # most rows of which are learnt all the same
            elsewhere = finding.source in (Languages.name, SurfaceFeatures.name, ImageFeatures.name) or (
                finding.source in (SplitShift.name, SplitSupport.name)
                and not {"auc", "column"}.isdisjoint(finding.figures)
            )
            cue = finding.source == AnswerCues.name or not {"cues", "rule"}.isdisjoint(finding.figures)
            fails = constant or falls_behind(run, seen_metric(run), 0.0 if cue else GAP_ALARM)
            # A loss does not show that a model writes as the answers of training are written.
            fails = fails or (finding.figures.get("what") == "answers" and unmeasured_answers(run))
            # A loss on texts learnt the wrong way round is worse everywhere: only a gain shows that they were not.
            fails = fails or (finding.source == ExchangedRoles.name and not _is_better(run))
            # What training never has is never answered, however good the model is at the rest.
            fails = fails or ("lacking" in finding.figures and finding.figures["share"] >= LACKING)
            # Rows without a true number, or without one of their labels, are wrong in any case.
            fails = fails or not {"default", "left_out", "mixed_up", "scaled"}.isdisjoint(finding.figures)
            # What rows are made of is not what the model will get, however good it is at the words in them.
            fails = fails or bool(finding.figures.get("composition"))
            everywhere = finding.source == ExchangedRoles.name and "split" not in finding.figures
            if slipped or everywhere:  # a model that copes does so against its labels, or in the wrong role
                yield finding
            elif not fails or finding.figures.get("split") not in ("train", run.evaluation.split):
                yield finding.model_copy(update={"level": "note", "explains": ()})
            elif elsewhere and (harder := HARDER.get(finding.figures.get("by", ""))):
                text = f"{capitalized(harder)}, as this split is meant to measure. {finding.text}"
                yield finding.model_copy(
                    update={"level": "alarm", "explains": EXPLAINED, "text": text, "brief": harder}
                )
            elif topics and (finding.source, finding.level) == (SurfaceFeatures.name, "note") and (
                "composition" not in finding.figures
            ):  # fmt: skip
                yield finding
            elif finding.source == SplitShift.name and elsewhere and (
                surface or finding.figures.get("split") in composed
            ):  # which says how its words differ  # fmt: skip
                yield finding.model_copy(update={"level": "note", "explains": ()})
            elif elsewhere:
                yield finding.model_copy(update={"level": "alarm", "explains": EXPLAINED})
            else:
                yield finding


def _has_other_topics(run: RunRecords) -> bool:
    """Return whether longer words distinguish the splits, so that not only the style of writing differs."""
    shifts = [f.figures for f in run.audit.findings if f.source == SplitShift.name and "auc" in f.figures]
    words = [
        word for key in ("held_out_words", "training_words") for figures in shifts for word in figures.get(key, ())
    ]
    return any(len(word) > SHORT_WORD for word in words)


def _is_better(run: RunRecords) -> bool:
    """Return whether the tuned model is shown to be better than its base by the metric that decides."""
    change = run.evaluation.difference.get(run.headline_metric or "")
    return change is not None and bool(change.better)
