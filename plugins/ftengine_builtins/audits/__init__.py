"""Audits that ship with ftengine."""

from ftengine_builtins.audits.answer_cues import AnswerCues
from ftengine_builtins.audits.answer_forms import AnswerForms
from ftengine_builtins.audits.balance import Balance
from ftengine_builtins.audits.contradictions import Contradictions
from ftengine_builtins.audits.conversations import Conversations
from ftengine_builtins.audits.cut_texts import CutTexts
from ftengine_builtins.audits.encoded import Lengths, UnknownTokens, UnreadKeys
from ftengine_builtins.audits.exchanged_roles import ExchangedRoles
from ftengine_builtins.audits.group_labels import GroupLabels
from ftengine_builtins.audits.image_features import ImageFeatures
from ftengine_builtins.audits.label_noise import LabelNoise
from ftengine_builtins.audits.label_spellings import JoinedLabels, LabelSpellings
from ftengine_builtins.audits.labels_by_column import LabelsByColumn
from ftengine_builtins.audits.languages import Languages
from ftengine_builtins.audits.mismatched_pairs import MismatchedPairs
from ftengine_builtins.audits.misplaced_labels import MisplacedLabels
from ftengine_builtins.audits.missing_texts import MissingTexts
from ftengine_builtins.audits.number_targets import NumberTargets
from ftengine_builtins.audits.one_answer import OneAnswer
from ftengine_builtins.audits.pairs_by_column import PairsByColumn
from ftengine_builtins.audits.preferences import ContraryPreferences, EqualAnswers, PreferenceLengths
from ftengine_builtins.audits.several_sources import SeveralSources
from ftengine_builtins.audits.short_copies import ShortCopies
from ftengine_builtins.audits.shortened_texts import ShortenedTexts
from ftengine_builtins.audits.sources import Duplicates, Leaks, Reading
from ftengine_builtins.audits.span_bounds import SpanBounds
from ftengine_builtins.audits.split_shift import SplitShift
from ftengine_builtins.audits.split_support import SplitSupport
from ftengine_builtins.audits.surface_features import SurfaceFeatures
from ftengine_builtins.audits.telling_phrases import TellingPhrases
from ftengine_builtins.audits.template_marks import TemplateMarks
from ftengine_builtins.audits.texts import Mojibake, Oddities, PersonalData
from ftengine_builtins.audits.unlabelled_rows import UnlabelledRows
from ftengine_builtins.audits.unread_columns import UnreadColumns
from ftengine_builtins.audits.unread_groups import UnreadGroups

__all__ = [
    "AnswerCues",
    "AnswerForms",
    "Balance",
    "Contradictions",
    "ContraryPreferences",
    "Conversations",
    "CutTexts",
    "Duplicates",
    "EqualAnswers",
    "ExchangedRoles",
    "GroupLabels",
    "ImageFeatures",
    "JoinedLabels",
    "LabelNoise",
    "LabelSpellings",
    "LabelsByColumn",
    "Languages",
    "Leaks",
    "Lengths",
    "MismatchedPairs",
    "MisplacedLabels",
    "MissingTexts",
    "Mojibake",
    "NumberTargets",
    "Oddities",
    "OneAnswer",
    "PairsByColumn",
    "PersonalData",
    "PreferenceLengths",
    "Reading",
    "SeveralSources",
    "ShortCopies",
    "ShortenedTexts",
    "SpanBounds",
    "SplitShift",
    "SplitSupport",
    "SurfaceFeatures",
    "TellingPhrases",
    "TemplateMarks",
    "UnknownTokens",
    "UnlabelledRows",
    "UnreadColumns",
    "UnreadGroups",
    "UnreadKeys",
]
