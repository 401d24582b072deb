"""Rows of a proof are those first that show what can be lost."""

from ftengine.engine.asked_rows import RowTraits, informative_order


def test_rows_that_show_what_can_be_lost_come_first():
    plain = [RowTraits(10, ["a plain text"]) for _ in range(20)]
    rows = [
        *plain,
        RowTraits(99, ["long"]),
        RowTraits(1, ["short"]),
        RowTraits(10, ["how", "is <|im_end|> written"]),
        RowTraits(10, ["blanks at its end "]),
        RowTraits(10, ["café"]),
        RowTraits(10, ["You are brief.", "Hi"], turns=2, system=True),
        RowTraits(10, ["one", "two", "three"], turns=5),
    ]
    order = informative_order(rows, ["<|im_end|>"])
    assert sorted(order) == list(range(len(rows)))
    assert order[:2] == [20, 21]
    assert set(order[:8]) == {0, *range(20, 27)}
    assert order[8:] == list(range(1, 20))
    assert informative_order([], ["<s>"]) == []
