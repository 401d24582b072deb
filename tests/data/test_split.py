"""Equal examples stay on one side, nothing is lost, and the seed alone decides."""

from __future__ import annotations

import json

import numpy as np
import pytest
from expected import raises
from hypothesis import given
from hypothesis import strategies as st

from ftengine.data.partition import partition
from ftengine.data.split import make_splits
from ftengine.errors import DataError
from ftengine.run.recipe import DataSection, SplitSection


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def texts(names) -> str:
    return lines({"text": name} for name in names)


def digest(groups) -> np.ndarray:
    return np.array([f"{group:016}" for group in groups], dtype="S16")


groups = st.lists(st.integers(0, 30), min_size=1, max_size=80)
fractions = st.fixed_dictionaries(
    {}, optional={"test": st.floats(0.01, 0.49), "validation": st.floats(0.01, 0.49)}
).filter(bool)


@given(groups, fractions)
def test_a_cut_keeps_all_rows_and_puts_no_identity_on_two_sides(groups, fractions):
    rows = np.array(groups)
    try:
        sides = partition(digest(groups), fractions)
    except DataError:
        assert len(set(groups)) <= len(fractions)
        return
    assert sorted(np.concatenate(list(sides.values()))) == list(range(len(groups)))
    assert all(len(side) for side in sides.values())
    assert all(list(side) == sorted(side) for side in sides.values())
    identities = [set(rows[side]) for side in sides.values()]
    assert sum(map(len, identities)) == len(set(groups))


@given(st.integers(2, 300), st.floats(0.01, 0.99))
def test_distinct_rows_are_cut_to_the_nearest_number(count, fraction):
    held = len(partition(digest(range(count)), {"validation": fraction})["validation"])
    assert held == pytest.approx(min(max(fraction * count, 1), count - 1), abs=0.5)


@given(groups, st.floats(0.01, 0.4), st.floats(0.01, 0.4), st.floats(0.01, 0.4))
def test_the_validation_fraction_does_not_move_the_test_set(groups, test, one, other):
    if len(set(groups)) > 2:
        first = partition(digest(groups), {"test": test, "validation": one})["test"]
        second = partition(digest(groups), {"test": test, "validation": other})["test"]
        assert list(first) == list(second)


def test_the_test_fraction_does_not_move_the_validation_set():
    rows = digest(range(100))
    small, large = (partition(rows, {"test": test, "validation": 0.1})["validation"] for test in (0.1, 0.3))
    assert list(small) == list(large) == list(partition(rows, {"test": 0.0001, "validation": 0.1})["validation"])


def test_a_large_group_does_not_swell_a_small_fraction():
    one_large = [0] * 900 + list(range(1, 101))
    assert len(partition(digest(one_large), {"validation": 0.05})["validation"]) == 50


def test_the_smallest_group_is_held_out_where_all_are_too_large():
    assert list(partition(digest([7, 7, 7, 3, 3, 7]), {"validation": 0.1})["validation"]) == [3, 4]


def test_a_split_depends_on_seed_and_content_alone(write, text_task):
    names = [f"text {i % 70}" for i in range(100)]
    section = DataSection(train=write("a.jsonl", texts(names)), validation=0.2, test=0.1)
    other = section.model_copy(update={"train": write("b.jsonl", texts(reversed(names)))})

    def held(section, seed):
        splits = make_splits(section, text_task, seed)
        return {name: sorted(row["text"] for row in rows) for name, rows in splits.mapping().items()}

    assert held(section, 3) == held(section, 3) == held(other, 3)
    assert held(section, 3) != held(section, 4)


def test_splits_are_given_by_name_and_know_their_places(write, text_task):
    source = write("a.jsonl", "\n" + texts(f"text {i}" for i in range(20)))
    section = DataSection(train=source, validation=0.1, test=0.2)
    splits = make_splits(section, text_task, 0)
    assert list(splits.mapping()) == ["train", "validation", "test"]
    assert [len(rows) for rows in splits.mapping().values()] == [14, 2, 4]
    for rows in splits.mapping().values():
        for i, row in enumerate(rows):
            assert rows.where(i) == f"a.jsonl:{int(row['text'].split()[1]) + 2}"


@pytest.mark.parametrize(
    ("eras", "joined", "message"),
    [
        ("oooooo", "abcdef", "1 group of column 'era'"),
        ("oooonn", "abcdda", "2 values, joined by duplicates"),
    ],
)
def test_a_column_of_too_few_groups_is_reported_with_what_joins_its_values(write, text_task, eras, joined, message):
    source = write("a.jsonl", lines({"text": t, "era": e} for t, e in zip(joined, eras, strict=True)))
    split = {"by": "group", "column": "era"}
    with raises(DataError, message):
        make_splits(DataSection(train=source, validation=0.2, split=split), text_task, 0)
    if "≈" in message:
        apart = DataSection(train=source, validation=0.3, split={**split, "duplicates": "apart"}, leaks="drop")
        assert len(make_splits(apart, text_task, 0).validation)
    with raises(DataError, "3 folds"):
        make_splits(DataSection(train=source, validation=None, split={**split, "folds": 3}), text_task, 0)


def by_patient(write):
    rows = [{"text": f"note {i}", "patient": i // 4 % 20, "label": "ab"[i % 2]} for i in range(80)]
    rows += [{**row, "patient": 99} for row in rows[:1]]  # a duplicate joins patient 99 to the first
    return write("notes.jsonl", lines(rows))


@pytest.mark.parametrize("by", ["random", "stratified", {"by": "group", "column": "patient"}])
def test_rows_of_one_group_share_a_side_however_rows_are_divided(write, label_task, by):
    section = DataSection(train=by_patient(write), validation=0.2, test=0.2, group="patient", split=by)
    splits = make_splits(section, label_task, 0).mapping()
    sides = {name: {row["patient"] for row in rows} for name, rows in splits.items()}
    assert sum(map(len, sides.values())) == 21
    assert all(({0, 99} & side) in (set(), {0, 99}) for side in sides.values())
    kept = make_splits(section.model_copy(update={"group": None, "split": SplitSection(by="random")}), label_task, 0)
    assert sum(len({row["patient"] for row in rows}) for rows in kept.mapping().values()) > 21


def test_a_group_in_two_files_is_a_leak(write, text_task):
    train, test = (write(f"{name}.jsonl", lines([{"text": name, "patient": 3}])) for name in ("train", "test"))
    section = DataSection(train=train, validation=None, test=test, group="patient")
    with raises(DataError, "1 value", "patient"):
        make_splits(section, text_task, 0)
    with raises(DataError, "doctor", "data.group"):
        make_splits(section.model_copy(update={"group": "doctor"}), text_task, 0)


def test_rows_are_grouped_by_one_column():
    for split, column in (({"by": "group", "column": "patient"}, "patient"), ({"by": "time", "column": "day"}, "ward")):
        assert DataSection(train="a.jsonl", split=split, group=column).group_column == column
    with raises(ValueError, "'ward'", "'patient'"):
        DataSection(train="a.jsonl", split={"by": "group", "column": "patient"}, group="ward")


def test_too_few_distinct_examples_are_reported(write, text_task):
    source = write("a.jsonl", texts("aaaabb"))
    make_splits(DataSection(train=source, validation=0.1), text_task, 0)
    with raises(DataError, "a.jsonl", "6 rows", "2 groups"):
        make_splits(DataSection(train=source, validation=0.1, test=0.1), text_task, 0)
    with raises(DataError, "3 rows", "1 group", "data.validation"):
        make_splits(DataSection(train=write("b.jsonl", texts("aaa"))), text_task, 0)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_columns_that_do_not_suit_the_task_are_reported_with_the_file(write, name, text_task):
    class Strict(type(text_task)):
        def check_columns(self, columns):
            if "text" not in columns:
                raise DataError(f"no column 'text', only {', '.join(columns)}.")

    good, bad = write("good.jsonl", texts("abc")), write("bad.jsonl", '{"body": "a"}\n')
    section = DataSection(**{"train": good, "validation": None, name: bad})
    with raises(DataError, "bad.jsonl", "'text'", "body"):
        make_splits(section, Strict(), 0)


@pytest.mark.parametrize("split", ["random", {"by": "time", "column": "at"}])
def test_a_fraction_that_is_no_row_is_refused(write, text_task, split):
    source = write("a.jsonl", lines({"text": f"text {i}", "at": i} for i in range(40)))
    section = DataSection(train=source, validation=0.0001, split=split)
    with raises(DataError, "data.validation", "0.0001", "0.025"):
        make_splits(section, text_task, 0)
