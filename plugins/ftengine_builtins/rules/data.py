"""Rules about the data's effect on the result: audits' findings, leaks, repeated rows, cut examples."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ftengine import RunRecords
from ftengine.api import Finding, Level, Rule
from ftengine.evaluation import read_predictions
from ftengine.text import capitalized, counted, has_value, percent, plain
from ftengine_builtins.audits.contradictions import MANY, Contradictions
from ftengine_builtins.audits.cut_texts import CutTexts
from ftengine_builtins.audits.labels_by_column import MORE, WRONG_TIMES, LabelsByColumn
from ftengine_builtins.audits.missing_texts import MissingTexts
from ftengine_builtins.audits.one_answer import NOTE as NEARLY_ALL
from ftengine_builtins.audits.one_answer import OneAnswer
from ftengine_builtins.audits.sources import REPEATED, SAME_ROWS, are_of_one_form, leak_level, of_one_form
from ftengine_builtins.rules.error_groups import errors_of
from ftengine_builtins.rules.quality import is_chosen
from ftengine_builtins.rules.threshold import is_better_than_a_constant

NOTE = 0.05
"""Share of training rows that repeat another, from which it is said."""

READ, WELL = 0.25, 0.9
"""Part of a typical training example that is read, up to which a limit below the model's own is why a figure stays
below the second."""
FEWEST, COPES = 20, 1.5
"""Measured rows of a value, and of others, from which it shows whether the tuned model is right there; and how many
times as often it is wrong there, up to which it is."""

JUDGED_ELSEWHERE = (
    "label-noise", "leaks", "duplicates", "lengths", "cut-texts", "misplaced-labels", "split-shift", "answer-cues",
    "exchanged-roles", "surface-features", "image-features", "split-support", "unread-columns",
)  # fmt: skip
"""Audits whose findings other rules judge, knowing what the run made of the data."""

KNOWN = ("answer-forms", "contradictions", "one-answer", "personal-data", "template-marks")
"""Audits whose notes matter to whoever uses the model as well."""


class AuditFindings(Rule):
    """Repeats the alarms of the audits, and the notes of some: contradictions, one answer, marks, personal data."""

    name = "audit-findings"
    order = 8

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        for finding in run.audit.findings:
            matters = finding.level == "alarm" or (finding.level == "note" and finding.source in KNOWN)
            if matters and finding.source not in JUDGED_ELSEWHERE:
                nearly_all = finding.source == OneAnswer.name and finding.figures.get("share", 1.0) >= NEARLY_ALL
                more = nearly_all and is_better_than_a_constant(run)  # was learnt than that one
                more = more or (finding.source == LabelsByColumn.name and _copes(run, finding))
                yield finding.model_copy(update={"level": "note", "explains": ()}) if more else finding


def _copes(run: RunRecords, finding: Finding) -> bool:
    """Return whether the tuned model is as often right where a column has a value: words alone mislead there.

    It has to agree with the labels of training rows as well, which may be wrong where those of measured rows are right.
    """
    name, value = finding.figures.get("column"), finding.figures.get("value")
    if not value or "confused" not in finding.figures or not run.evaluation.split:
        return False
    shares = _wrong_where(run, run.evaluation.split, f"row.{name}", value)
    trained = _wrong_where(run, "training", f"row.{name}", value)
    if shares is None or (trained and trained[0] > max(trained[1] + MORE, WRONG_TIMES * trained[1])):
        return False
    return shares[0] <= max(COPES * shares[1], shares[1] + NOTE)


def _wrong_where(run: RunRecords, rows: str, column: str, value: str) -> tuple[float, float] | None:
    """Return the shares of wrong answers where a column has a value, and elsewhere; None if there are few rows."""
    table = read_predictions(run.path, rows, "tuned")
    errors = errors_of(table)
    if column not in table or errors is None:
        return None
    of = np.array([str(item) == value for item in table[column]])
    if min(of.sum(), (~of).sum()) < FEWEST:
        return None
    return float(errors.of[of].mean()), float(errors.of[~of].mean())


class LeakedRows(Rule):
    """Names held-out rows that were trained on as well, or whose groups were."""

    name = "leaked-rows"
    order = 2

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        for leak in run.audit.facts.get("leaks", ()):
            first, held = leak["between"]
            exact, near, groups = leak["count"], leak["near"], leak.get("groups", 0)
            if leak["dropped"] or not exact + near + groups:
                continue
            rows = run.audit.splits[held].rows or 1
            used = held == run.evaluation.split
            placeholders = has_placeholders(run)
            one_form = near > 0 and are_of_one_form(run.audit.facts)
            level = leak_level(
                leak, run.recipe.data.leaks, rows, measured=used, placeholders=placeholders, one_form=one_form
            )
            leaked = run.evaluation.leaked if used and first == "train" else None
            if leaked is not None:
                then = f"All other figures are without them{_of_leaked(run, leaked)}"
            elif first == "train":
                then = "Figures on them say nothing about new data" if used else "They helped to choose the weights"
            else:
                chose = "Validation chose the weights" if is_chosen(run) else "Choices are made by validation"
                size = "" if level == "alarm" else "somewhat "
                then = f"{chose}, so {held} figures are {size}optimistic"
            remedy = _remedy(run, leak, rows)
            text, places = f"{'' if leaked else f'{remedy}: '}{leak['text']}. {then}.", tuple(leak["places"])
            if one_form and not exact + groups:
                text = f"{leak['text']}.{of_one_form(run.audit.facts)}"
            figures = {"between": leak["between"], "exact": exact, "near": near, "groups": groups, "rows": rows}
            if leaked is not None:
                figures |= {"metric": run.headline_metric, "leaked": leaked.tuned.get(run.headline_metric)}
            yield Finding(
                kind="data",
                level=level,
                text=text,
                brief=f"{remedy[:1].lower()}{remedy[1:]}: {leak['text'].partition(' (e.g. ')[0]}",
                explains=("quality",) if level == "alarm" and used else (),
                figures=figures,
                places=places,
            )


def has_placeholders(run: RunRecords) -> bool:
    """Return whether many texts are placeholders, which are equal without being copies of one another."""
    return any(finding.source == MissingTexts.name and finding.level == "alarm" for finding in run.audit.findings)


def _remedy(run: RunRecords, leak: Mapping[str, Any], rows: int) -> str:
    """Return what to do about a leak into a split with this many rows, as the beginning of a sentence."""
    (first, held), repeated = leak["between"], leak["count"] + leak["near"]
    if first == "train":
        # Where all rows leak they are one set, of which dropping leaves nothing.
        return f"Give {held} other rows than training" if repeated >= rows else "Set data.leaks to drop"
    if not isinstance(getattr(run.recipe.data, held, None), str):
        return "Split the data again"
    if repeated >= SAME_ROWS * rows:
        return f"Give {first} other rows than {held}"
    return f"Leave the rows that {held} has too out of {first}"


def _of_leaked(run: RunRecords, leaked: Any) -> str:
    """Compare the figure on leaked rows with that on the others, if both can be computed."""
    metric = run.headline_metric or ""
    leaked_figure, new_figure = leaked.tuned.get(metric), run.evaluation.tuned.get(metric)
    if not has_value(leaked_figure) or not has_value(new_figure) or run.evaluation.metrics[metric].relative:
        return ""
    return f": {run.evaluation.metrics[metric].label} {plain(new_figure)} on new rows, {plain(leaked_figure)} on these"


class RepeatedRows(Rule):
    """Reports the share of duplicates in the training split, and that most rows of the measured one are."""

    name = "repeated-rows"
    order = 16

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        if any(f.source == Contradictions.name and f.figures.get("share", 0) >= MANY for f in run.audit.findings):
            return  # copies have several labels: without them, the label of one of them would stay
        yield from _few_distinct(run)
        split = run.audit.splits["train"]
        rows, exact, near = split.rows, split.duplicates, split.near_duplicates
        share = (exact + near) / rows if rows else 0.0
        if share < NOTE:
            return
        also = f", {near:,} nearly" if near else ""
        text = f"Remove copies: {exact:,} of {rows:,} training rows repeat another word for word{also} "
        text += f"({percent(share)} in all), so the data set is smaller than it looks."
        one_form = near > exact and are_of_one_form(run.audit.facts)
        if one_form:
            text = f"{exact:,} of {rows:,} training rows repeat another word for word{also}."
            text += of_one_form(run.audit.facts)
        level: Level = "alarm" if share >= REPEATED and not has_placeholders(run) and not one_form else "note"
        brief = f"remove copies: {percent(share)} of the training rows repeat another"
        figures = {"rows": rows, "duplicates": exact, "near_duplicates": near, "share": share}
        yield Finding(kind="data", level=level, text=text, brief=brief, figures=figures)


def _few_distinct(run: RunRecords) -> Iterator[Finding]:
    """Find a measured split most rows of which are copies: figures are those of the texts that are repeated most."""
    measured = run.evaluation.split
    split = run.audit.splits.get(measured) if measured and measured != "train" else None
    if split is None or split.duplicates < REPEATED * (split.rows or 1):
        return
    brief = f"take the copies out of {measured}: {split.duplicates:,} of its {split.rows:,} rows repeat another word "
    brief += f"for word, so that figures are of {counted(split.rows - split.duplicates, 'distinct row')}"
    yield Finding(
        kind="data",
        level="alarm",
        text=f"{capitalized(brief)}. Was a file written twice, or one row repeated?",
        brief=brief,
        figures={"split": measured, "rows": split.rows, "duplicates": split.duplicates},
    )


class CutExamples(Rule):
    """Reports that most training examples were cut to the length limit, and the cost of that by audit `cut-texts`.

    The audit's alarm is repeated if the model's figure is nearer to that of the kept parts' words than to that of the
    whole texts' words.
    """

    name = "cut-examples"
    order = 18

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        encoded = run.audit.encoded["train"]
        count, examples = encoded["truncated"], encoded["examples"]
        figures = {"truncated": count, "examples": examples}
        cut_texts = [finding for finding in run.audit.findings if finding.source == CutTexts.name]
        for finding in cut_texts:
            audited, reached = (
                finding.figures,
                run.evaluation.tuned.get("accuracy") or run.evaluation.tuned.get("r2"),
            )
            half_way = (audited["whole"] + audited["kept"]) / 2
            costs = reached is None or reached.high is None or reached.high < half_way
            level = finding.level if costs else "note"
            yield finding.model_copy(update={"source": "", "level": level, "figures": {**figures, **audited}})
        if count > examples / 2 and not cut_texts:
            text = f"Raise task.max_length: {percent(count / examples)} of the training examples are longer than the "
            text += f"limit of {encoded['longest']:,} tokens and were truncated, so the model never saw their ends."
            reached = run.evaluation.tuned.get("accuracy") or run.evaluation.tuned.get("r2")
            fails = reached is None or reached.high is None or reached.high < WELL
            typical = (encoded.get("untruncated") or {}).get("50", 0)
            if fails and encoded["longest"] <= READ * typical and encoded["longest"] < (encoded.get("limit") or 0):
                brief = f"raise task.max_length ({encoded['longest']:,}): half of the training examples have "
                brief += f"{typical:,} tokens or more, and only so many of them are read"
                yield Finding(kind="data", level="alarm", text=f"{capitalized(brief)}.", brief=brief,
                              explains=("quality", "learning", "classes", "over-fitting", "worse"),
                              figures={**figures, "longest": encoded["longest"], "typical": typical})  # fmt: skip
                return
            yield Finding(kind="data", level="note", text=text, figures=figures)
