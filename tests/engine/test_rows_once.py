"""A run decodes a row of its data once after the file is parsed, and looks at it once, whoever asks for it."""

from __future__ import annotations

from collections import Counter

import pytest

from ftengine import fine_tune
from ftengine.data import read, rows
from ftengine_builtins.tasks.causal_lm import CausalLM
from ftengine_builtins.tasks.text_classification import TextClassification


@pytest.mark.parametrize(("recipe", "task"), [("label_recipe", TextClassification), ("chat_recipe", CausalLM)])
def test_a_row_is_decoded_and_viewed_once_a_run(request, monkeypatch, recipe, task):
    decoded, viewed = Counter(), Counter()
    decode, view = rows.DataRows._row, task.view

    def counted_decode(self, stored):
        row = decode(self, stored)
        decoded[str(row)] += 1
        return row

    def counted_view(self, row):
        viewed[str(row)] += 1
        return view(self, row)

    monkeypatch.setattr(rows.DataRows, "_row", counted_decode)
    monkeypatch.setattr(task, "view", counted_view)
    made = request.getfixturevalue(recipe)(train__epochs=1)
    distinct = Counter(map(str, read.read_rows(made.data.train)))
    decoded.clear()
    fine_tune(made)
    assert decoded == distinct
    assert viewed == distinct
    decoded.clear()
    monkeypatch.setattr(read, "KEPT_BYTES", 0)  # as of a large source: each pass decodes the rows again
    fine_tune(made.model_copy(update={"output": made.output + "-large"}))
    assert all(count > 2 * distinct[row] for row, count in decoded.items())
