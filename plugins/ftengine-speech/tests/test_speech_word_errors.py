"""WER and CER: jiwer's own figures, weights, details, and the normalisers."""

import jiwer
import numpy as np
import pytest
from expected import raises

from ftengine.errors import RecipeError
from ftengine.testing import check_evaluator
from ftengine_speech.normalise import normalised
from ftengine_speech.word_errors import CharacterErrorRate, WordErrorRate

PAIRS = [
    ("Give 50 milligrams of metoprolol.", "give fifty milligrams of meta pro lol"),
    ("The patient sleeps well", "the patient sleeps"),
    ("No change.", "no change"),
    ("Start warfarin and apixaban", "start war for in and apixaban today"),
    ("a b c d", ""),
]


def rows_of(evaluator, pairs=PAIRS, **more):
    predictions = [
        {"completion": ours, "reference": theirs, "seconds": i + 1.0, "snr": 5.0 + 9 * i}
        for i, (theirs, ours) in enumerate(pairs)
    ]
    kept = [{**p, **evaluator.keep(p)} for p in predictions]
    columns = {key: [row[key] for row in kept] for key in kept[0]}
    return {key: np.array(x, dtype=object if isinstance(x[0], str) else float) for key, x in columns.items()}


def test_the_rate_is_jiwers_over_the_whole_set():
    evaluator = WordErrorRate()
    theirs, ours = ([normalised(text, "whisper") for text in texts] for texts in zip(*PAIRS, strict=True))
    output = jiwer.process_words(theirs, ours)
    rows = rows_of(evaluator)
    assert evaluator.score(rows, np.ones(len(PAIRS)))["wer"] == pytest.approx(output.wer)
    assert rows["substitutions"].sum() == output.substitutions
    assert (rows["deletions"].sum(), rows["insertions"].sum()) == (output.deletions, output.insertions)
    weights = np.array([[2, 0, 1, 1, 0], [0, 1, 0, 0, 3]])
    for row, value in zip(weights, evaluator.score_resamples(rows, weights)["wer"], strict=True):
        again = jiwer.wer(*([t for t, n in zip(x, row, strict=True) for _ in range(n)] for x in (theirs, ours)))
        assert value == pytest.approx(again)


def test_characters_are_jiwers():
    evaluator = CharacterErrorRate()
    theirs, ours = ([normalised(text, "whisper") for text in texts] for texts in zip(*PAIRS, strict=True))
    assert evaluator.score(rows_of(evaluator), np.ones(5))["cer"] == pytest.approx(jiwer.cer(theirs, ours))


def test_recall_counts_listed_words_in_the_reference(tmp_path):
    file = tmp_path / "drugs.txt"
    file.write_text("Metoprolol\nwarfarin\nApixaban\nibuprofen\nmilligrams of\n")
    evaluator = WordErrorRate(WordErrorRate.Config(words=str(file)))
    rows = rows_of(evaluator)
    assert rows["said"].tolist() == [2, 0, 0, 2, 0]
    assert rows["hit"].tolist() == [1, 0, 0, 1, 0]
    assert evaluator.score(rows, np.ones(5))["word_recall"] == 0.5
    assert evaluator.trials(rows) == {"word_recall": 4}
    with raises(RecipeError, "words", "no-such"):
        WordErrorRate(WordErrorRate.Config(words="no-such-file"))


def test_rows_without_a_transcript_do_not_count():
    evaluator = WordErrorRate()
    rows = rows_of(evaluator, [*PAIRS[:2], (None, "noise"), ("...", "noise")])
    assert np.isnan(rows["errors"]).tolist() == [False, False, True, True]
    assert evaluator.score(rows, np.ones(4)) == evaluator.score(rows_of(evaluator, PAIRS[:2]), np.ones(2))


def test_details_tell_kinds_confusions_and_shifted_transcripts():
    evaluator = WordErrorRate()
    rows = 5

    def estimate(values, trials=None):
        from ftengine.api import Estimate

        return [Estimate(float(x), None, None, 5) for x in values(np.ones((1, rows)))[0]]

    details = list(evaluator.details(rows_of(evaluator), estimate))
    facts = dict(x for x in details if isinstance(x, tuple))
    assert facts["words"] == 19
    assert sum(facts["errors"].values()) == pytest.approx(evaluator.score(rows_of(evaluator), np.ones(5))["wer"])
    assert facts["empty_answers"] == 1
    titles = [x.title for x in details if not isinstance(x, tuple)]
    assert titles == ["Confused words", "Word error rate by length", "Word error rate by signal-to-noise ratio"]
    rows = 4
    moved = [(PAIRS[i][0], PAIRS[i - 1][0]) for i in range(1, 5)]
    shifted = dict(x for x in evaluator.details(rows_of(evaluator, moved), estimate) if isinstance(x, tuple))
    assert shifted["shifted"]["-1"] == 0
    assert shifted["shifted"]["1"] > 0.5


def test_normalisers_differ_as_they_say():
    assert (
        normalised("Dr. Smith's 2nd visit (cough) won't, uh, cost £5!", "whisper")
        == "doctor smith is 2nd visit will not cost £5"
    )
    assert normalised("Straße, 5 km?", "whisper", "de") == "straße 5 km"
    assert normalised("हिन्दी भाषा।", "whisper", "hi") == "हिन्दी भाषा"  # Whisper's own divides it at the vowel signs
    assert normalised("  As  IS. ", "none") == "As IS."


@pytest.mark.parametrize("evaluator", [WordErrorRate, CharacterErrorRate])
def test_the_evaluators_conform(evaluator):
    predictions = [
        {"completion": ours, "reference": theirs, "seconds": 1.0, "snr": 20.0, "language": "en", "prompt": "a.wav"}
        for theirs, ours in PAIRS
    ]
    check_evaluator(evaluator, predictions)
