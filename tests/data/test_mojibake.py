"""Texts that were decoded wrongly are told from texts that only look strange."""

from __future__ import annotations

import pytest

from ftengine.data.mojibake import is_mojibake

TEXTS = [
    *(
        "Привет, мир",
        "Γειά σου",
        "日本語のテキスト",
        "한국어",
        "سلام",
        "שלום",
        "ok 😀 then",
        "café",
        "naïve",
        "š",
        "Größe",
    ),
    *("it’s “so”", "José’s “house”", "20 °C", "€ 5", "« été »", "voilà vu", "→ here", "Å", "\ufeffx"),
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_utf8_that_was_read_otherwise_is_found(text, encoding):
    wrong = "".join(bytes([b]).decode(encoding, "ignore") or chr(b) for b in text.encode())
    assert is_mojibake(wrong)
    assert not is_mojibake(text)


@pytest.mark.parametrize(
    "text",
    [
        *("Fuß“ sagte er", "Spaß…”", "“olé’”", "cliché…” he said", "CAFÉ…", "CAFÉ™", "JOSÉ’S", "Úžasný", "Úžas!"),
        *("l'été\u00a0» dit-il", "l'été\u00a0»\u00a0–", "«AMANHÃ»", "AMANHÃ…", "IRMÃ”", "“Å”", "ÇÃO", "±5 µm", "½ ¼"),
    ],
)
def test_text_that_could_be_read_back_by_chance_is_not(text):
    assert not is_mojibake(text)
