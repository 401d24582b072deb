"""Audits that ship in the box."""

from ftengine_builtins.audits.balance import Balance
from ftengine_builtins.audits.contradictions import Contradictions
from ftengine_builtins.audits.conversations import Conversations
from ftengine_builtins.audits.cut_texts import CutTexts
from ftengine_builtins.audits.encoded import Lengths, UnknownTokens, UnreadKeys
from ftengine_builtins.audits.label_noise import LabelNoise
from ftengine_builtins.audits.languages import Languages
from ftengine_builtins.audits.number_targets import NumberTargets
from ftengine_builtins.audits.preferences import ContraryPreferences, PreferenceLengths
from ftengine_builtins.audits.several_sources import SeveralSources
from ftengine_builtins.audits.sources import Duplicates, Leaks, Reading
from ftengine_builtins.audits.texts import Mojibake, Oddities, PersonalData

__all__ = [
    "Balance",
    "Contradictions",
    "ContraryPreferences",
    "Conversations",
    "CutTexts",
    "Duplicates",
    "LabelNoise",
    "Languages",
    "Leaks",
    "Lengths",
    "Mojibake",
    "NumberTargets",
    "Oddities",
    "PersonalData",
    "PreferenceLengths",
    "Reading",
    "SeveralSources",
    "UnknownTokens",
    "UnreadKeys",
]
