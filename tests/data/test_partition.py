"""Stratified, grouped and timely divisions, folds, and what becomes of leaks."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from expected import raises
from hypothesis import given
from hypothesis import strategies as st

from ftengine.data.partition import folds, latest, partition
from ftengine.data.split import make_splits
from ftengine.errors import DataError, RecipeError
from ftengine.run.recipe import DataSection, Recipe, SplitSection


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def held(splits, column="text"):
    return {name: [row[column] for row in rows] for name, rows in splits.mapping().items()}


# Stratified


@given(st.lists(st.integers(0, 4), min_size=40, max_size=300), st.floats(0.1, 0.4))
def test_a_stratified_cut_keeps_every_proportion(targets, fraction):
    targets = np.array(targets)
    sides = partition(np.arange(len(targets)), {"validation": fraction}, targets=targets)
    assert sorted(np.concatenate(list(sides.values()))) == list(range(len(targets)))
    for target, count in Counter(targets.tolist()).items():
        taken = int((targets[sides["validation"]] == target).sum())
        if count > 1:
            assert abs(taken - fraction * count) < 1 + 1e-9 or taken == count - 1
        assert count - taken >= 1  # training keeps one


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=10, max_size=200))
def test_a_stratified_cut_keeps_groups_on_one_side(rows):
    groups, targets = np.array(rows).T
    if len(set(groups)) > 1:
        sides = partition(groups, {"test": 0.3}, targets=targets)
        assert set(groups[sides["train"]]).isdisjoint(groups[sides["test"]])
        assert all(len(side) for side in sides.values())


def of_sources(write, sizes, label=lambda i: "ab"[i % 2]):
    """Write a file of so many distinct rows for each name; return the names."""
    for name, size in sizes.items():
        write(name, lines({"text": f"{name} {i}", "label": label(i), "who": f"{name}{i // 4}"} for i in range(size)))
    return list(sizes)


def by_source(splits):
    """Return for each split how many of its rows are of each source."""
    return {name: dict(Counter(row["data_source"] for row in rows)) for name, rows in splits.mapping().items()}


@pytest.mark.parametrize("by", ["random", "stratified", {"by": "group", "column": "who"}])
def test_each_source_has_its_share_of_what_is_held_out(write, label_task, by):
    train = of_sources(write, {"large.jsonl": 400, "small.jsonl": 40, "few.jsonl": 2})
    for seed in range(5):
        section = DataSection(train=train, validation=0.1, test=0.2, split=by)
        found = by_source(make_splits(section, label_task, seed))
        assert found["test"] == {"large.jsonl": 80, "small.jsonl": 8}
        assert found["validation"] == {"large.jsonl": 40, "small.jsonl": 4}


def test_rows_of_several_sources_are_divided_by_what_they_say_and_the_seed(write, text_task):
    train = of_sources(write, {"large.jsonl": 100, "small.jsonl": 30})
    write("large.jsonl", lines({"text": f"large.jsonl {i}"} for i in [*range(99, -1, -1)]))
    copies = [{"text": "large.jsonl 7"}, *({"text": f"small.jsonl {i}"} for i in range(30))]
    write("small.jsonl", lines(copies))

    def texts(names, seed):
        section = DataSection(train=names, validation=0.2, near_duplicates=None)
        return {name: sorted(rows) for name, rows in held(make_splits(section, text_task, seed)).items()}

    first = texts(train, 3)
    assert first == texts(train[::-1], 3) != texts(train, 4)
    assert not set(first["train"]) & set(first["validation"])  # equal rows of two sources share a side


def grid(labels, sources, rows):
    """Return groups in a shuffle, labels and sources of so many rows for each label of each source."""
    label, source = (x.ravel() for x in np.indices((labels, sources, rows))[:2])
    return np.random.default_rng(0).permutation(len(label)), label, source


@pytest.mark.parametrize(
    ("labels", "sources", "rows"), [(12, 5, 5), (12, 3, 15), (20, 10, 1), (3, 40, 2), (7, 3, 11), (1, 6, 3)]
)
def test_sources_leave_labels_the_proportions_that_they_have_without(labels, sources, rows):
    groups, label, source = grid(labels, sources, rows)
    shares = {"test": 0.1, "validation": 0.15}
    without = partition(groups, shares, targets=label)
    sides = partition(groups, shares, targets=label, sources=source)
    for name, share in shares.items():
        alone, found = (np.bincount(label[side[name]], minlength=labels) for side in (without, sides))
        assert found.tolist() == alone.tolist()
        of = np.bincount(source[sides[name]], minlength=sources)
        assert abs(of - share * labels * rows).max() < 2
        cells = np.bincount(label[sides[name]] * sources + source[sides[name]], minlength=labels * sources)
        assert abs(cells.reshape(labels, sources) - found[:, None] / sources).max() <= 1
    assert sorted(np.concatenate(list(sides.values()))) == list(range(len(groups)))


@pytest.mark.parametrize("by", ["random", "stratified"])
def test_each_fold_has_its_share_of_each_source(write, label_task, by):
    train = of_sources(write, {"large.jsonl": 120, "small.jsonl": 20})
    tested = []
    for fold in range(5):
        section = DataSection(train=train, validation=None, split={"by": by, "folds": 5, "fold": fold})
        tested.append(by_source(make_splits(section, label_task, 0))["test"])
    assert tested == [{"large.jsonl": 24, "small.jsonl": 4}] * 5


def test_there_must_be_labels_to_stratify_by(write, label_task, text_task):
    source = write("a.jsonl", lines({"text": f"t{i}"} for i in range(9)))
    section = DataSection(train=source, split={"by": "stratified"})
    with raises(DataError, "'text'", "no labels"):
        make_splits(section, text_task, 0)
    write("a.jsonl", lines({"text": f"t{i}", "label": i / 7} for i in range(9)))
    with raises(DataError, "9 different"):
        make_splits(section, label_task, 0)


# Groups


def test_rows_of_one_group_stay_together(write, text_task):
    rows = [{"text": f"t{i}", "patient": f"p{i % 20}"} for i in range(200)]
    section = DataSection(
        train=write("a.jsonl", lines(rows)), validation=0.1, test=0.2, split={"by": "group", "column": "patient"}
    )
    found = held(make_splits(section, text_task, 0), "patient")
    assert [len(set(values)) for values in found.values()] == [14, 2, 4]
    assert [len(values) for values in found.values()] == [140, 20, 40]
    assert sum(len(set(values)) for values in found.values()) == 20
    other = make_splits(section, text_task, 1)
    assert held(other, "patient") != found


def test_a_column_to_go_by_must_be_there_and_filled(write, text_task):
    source = write("a.jsonl", lines([{"text": "a", "g": 1}, {"text": "b", "g": 2}, {"text": "c", "g": None}]))
    with raises(DataError, "'grp'", "data.split.column", "text, g"):
        make_splits(DataSection(train=source, split={"by": "group", "column": "grp"}), text_task, 0)
    with raises(DataError, "a.jsonl:3", "'g'"):
        make_splits(DataSection(train=source, split={"by": "group", "column": "g"}), text_task, 0)


def test_a_value_as_number_and_as_text_is_one_group(write, text_task):
    written = [lambda n: n, lambda n: float(n), lambda n: str(n), lambda n: f" {n} ", lambda n: f"{n}.0"]
    rows = [{"text": f"t{i}", "g": written[i % 5](i // 5)} for i in range(50)]
    source = write("a.jsonl", lines(rows))
    for seed in range(5):
        section = DataSection(train=source, validation=0.3, split={"by": "group", "column": "g"})
        sides = [{int(float(g)) for g in side} for side in held(make_splits(section, text_task, seed), "g").values()]
        assert sum(map(len, sides)) == 10


@pytest.fixture
def visits(write):
    """Four patients in training; of the test file's three rows two are of them, one as text."""
    train = write("train.jsonl", lines({"text": f"t{i}", "patient": i % 4} for i in range(12)))
    test = write("test.jsonl", lines({"text": f"u{i}", "patient": p} for i, p in enumerate(["3", 1, 7])))
    return DataSection(train=train, validation=None, test=test, split={"by": "group", "column": "patient"})


def test_groups_in_training_and_in_a_file_held_out_are_a_leak(visits, text_task, audit):
    with raises(DataError, "2 values of column 'patient'", "train.jsonl:2 & test.jsonl:2", "data.leaks: drop"):
        make_splits(visits, text_task, 0)
    warned = audit(text_task, visits.model_copy(update={"leaks": "warn"}))
    [leak] = warned.facts["leaks"]
    assert (leak["between"], leak["count"], leak["near"], leak["groups"]) == (["train", "test"], 0, 0, 2)
    assert leak["places"] == ["train.jsonl:4 & test.jsonl:1", "train.jsonl:2 & test.jsonl:2"]
    assert warned.findings[0].level == "note"  # they are measured apart
    assert warned.findings[0].text.startswith("2 values of column 'patient' are in the training and in the test split")
    dropping = visits.model_copy(update={"leaks": "drop"})
    for audited in (True, False):
        dropped = make_splits(dropping, text_task, 0, audited=audited)
        assert set(held(dropped, "patient")["train"]) == {0, 2}
    assert make_splits(dropping, text_task, 0).audited().facts["leaks"][0]["dropped"] == 6


@pytest.mark.parametrize("by", ["group", "time"])
def test_a_file_held_out_needs_the_column_too(visits, write, text_task, by):
    test = write("bare.jsonl", lines([{"text": "x"}]))
    split = {"by": by, "column": "patient"}
    with raises(DataError, "bare.jsonl", "patient", "data.split.column"):
        make_splits(visits.model_copy(update={"test": test, "split": SplitSection(**split)}), text_task, 0)


# Time


def test_the_latest_rows_are_test_and_those_before_them_validation(write, text_task):
    days = [f"2024-{1 + i // 28:02}-{1 + i % 28:02}" for i in range(100)]
    order = np.random.default_rng(0).permutation(100)
    source = write("a.jsonl", lines({"text": f"t{i}", "day": days[i]} for i in order))
    section = DataSection(train=source, validation=0.1, test=0.2, split={"by": "time", "column": "day"})
    found = held(make_splits(section, text_task, 0), "day")
    assert {name: sorted(values) for name, values in found.items()} == {
        "train": days[:70],
        "validation": days[70:80],
        "test": days[80:],
    }


@given(st.lists(st.integers(0, 30), min_size=3, max_size=100), st.floats(0.01, 0.45), st.floats(0.01, 0.45))
def test_rows_of_one_time_share_a_side_and_none_is_lost(times, test, validation):
    times = np.array(times)
    if len(set(times)) < 3:
        with raises(DataError, "times"):
            latest(times, {"test": test, "validation": validation})
        return
    sides = latest(times, {"test": test, "validation": validation})
    assert sorted(np.concatenate(list(sides.values()))) == list(range(len(times)))
    assert times[sides["train"]].max() < times[sides["validation"]].min()
    assert times[sides["validation"]].max() < times[sides["test"]].min()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["2024-01-01", "soon"], "a.jsonl:2: 'soon'"),
        ([3, None], "a.jsonl:2: 'None'"),
        ([3, "2024-01-01"], "(a.jsonl:1) with dates (a.jsonl:2)"),
        ([1, 1], "1 different times"),
    ],
)
def test_times_that_have_no_order_are_reported(write, text_task, values, message):
    source = write("a.jsonl", lines({"text": f"t{i}", "at": value} for i, value in enumerate(values)))
    with raises(DataError, message):
        make_splits(DataSection(train=source, split={"by": "time", "column": "at"}), text_task, 0)


def test_zones_and_numbers_as_text_are_read(write, text_task):
    moments = ["2024-01-01T00:30:00+02:00", "2023-12-31T23:00:00Z", "2024-01-01"]  # 22:30, 23:00 and 24:00 UTC
    source = write("a.jsonl", lines({"text": f"t{i}", "at": value} for i, value in enumerate(moments)))
    section = DataSection(train=source, validation=0.3, test=0.3, split={"by": "time", "column": "at"})
    assert held(make_splits(section, text_task, 0)) == {"train": ["t0"], "validation": ["t1"], "test": ["t2"]}
    numbers = write("b.csv", "text,at\nx,10\ny,9\nz,8.5\n")
    section = section.model_copy(update={"train": numbers})
    assert held(make_splits(section, text_task, 0)) == {"train": ["z"], "validation": ["y"], "test": ["x"]}


def test_a_file_held_out_that_is_not_wholly_later_is_reported_with_both_times(write, text_task, audit):
    train = write("a.jsonl", lines({"text": f"t{i}", "at": f"2024-01-{i + 1:02}"} for i in range(10)))
    early, late = (
        write(f"{name}.jsonl", lines({"text": f"u{i}", "at": day} for i, day in enumerate(days)))
        for name, days in (("early", ["2024-01-05", "2024-02-01"]), ("late", ["2024-02-01"]))
    )
    section = DataSection(train=train, validation=0.2, test=early, split={"by": "time", "column": "at"})
    [text] = [finding.text for finding in audit(text_task, section).findings if finding.level == "note"]
    facts = "1 of 2 test rows", "2024-01-05 (early.jsonl:1)", "2024-01-08 (a.jsonl:8)"
    assert [fact for fact in facts if fact not in text] == []
    later = audit(text_task, section.model_copy(update={"test": late}))
    assert [finding for finding in later.findings if finding.level != "good"] == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1700000000, 1700000000500], "milliseconds since 1970 (a.jsonl:2)"),
        ([1700000000, "20240202"], "20240531 (a.jsonl:2)"),
        (["2023", "20240202"], "20240531 (a.jsonl:2)"),
    ],
)
def test_numbers_that_count_in_two_units_are_refused(write, text_task, values, message):
    section = DataSection(
        train=write("a.jsonl", lines({"text": f"t{i}", "at": value} for i, value in enumerate(values))),
        split={"by": "time", "column": "at"},
    )
    with raises(DataError, message):
        make_splits(section, text_task, 0)
    across = section.model_copy(
        update={
            "train": write("b.jsonl", lines({"text": f"t{i}", "at": values[0]} for i in range(3))),
            "test": write("c.jsonl", lines([{"text": "u", "at": values[1]}])),
        }
    )
    with raises(DataError, "one unit"):
        make_splits(across, text_task, 0)


# Folds


@given(st.lists(st.integers(0, 40), min_size=8, max_size=200), st.integers(2, 7))
def test_folds_hold_every_row_once_and_no_group_twice(groups, k):
    groups = np.array(groups)
    if len(set(groups)) < k:
        with raises(DataError, f"{k} folds"):
            folds(groups, k)
        return
    found = folds(groups, k)
    assert set(found) == set(range(k))
    assert all(len(set(found[groups == group])) == 1 for group in set(groups))
    assert Counter(found.tolist()).most_common()[0][1] - min(Counter(found.tolist()).values()) <= max(
        Counter(groups.tolist()).values()
    )


def test_stratified_folds_share_every_target():
    targets = np.array([0] * 50 + [1] * 10 + [2] * 5)
    found = folds(np.random.default_rng(0).permutation(65), 5, targets=targets)
    assert all((np.bincount(found[targets == t], minlength=5) == n).all() for t, n in ((0, 10), (1, 2), (2, 1)))


def test_the_folds_of_a_recipe_together_test_every_row_once(write, text_task):
    rows = [f"t{i % 45}" for i in range(60)]
    source = write("a.jsonl", lines({"text": text} for text in rows))
    tested, sizes = [], []
    for fold in range(5):
        section = DataSection(train=source, validation=0.25, split={"folds": 5, "fold": fold})
        splits = make_splits(section, text_task, 3)
        found = held(splits)
        assert sorted([*found["train"], *found["validation"], *found["test"]]) == sorted(rows)
        assert not set(found["test"]) & set(found["train"] + found["validation"])
        assert len(found["validation"]) == pytest.approx(0.25 * (60 - len(found["test"])), abs=1)
        assert splits.audited().settings["split"]["fold"] == fold
        tested += found["test"]
        sizes.append(len(found["test"]))
    assert sorted(tested) == sorted(rows)
    assert max(sizes) - min(sizes) <= 2
    whole = make_splits(DataSection(train=source, validation=None, split={"folds": 5, "fold": 4}), text_task, 3)
    assert held(whole)["test"] == found["test"]  # whatever validation is


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"split": {"folds": 3}, "test": 0.1}, "data.split.folds"),
        ({"split": {"folds": 3, "fold": 3}}, "0 to 2"),
        ({"split": {"fold": 1}}, "fold has no meaning"),
        ({"split": {"folds": 3, "by": "time", "column": "t"}}, "the future"),
        ({"split": {"by": "group"}}, "by: group needs column"),
        ({"split": {"column": "x"}}, "column has no meaning"),
        ({"split": {"by": "stratified"}, "validation": None}, "splits nothing"),
        ({"near_duplicates": 0.2}, "near_duplicates"),
        ({"leaks": "ignore"}, "leaks"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(data, message):
    with raises(RecipeError, message):
        Recipe.make({"model": {"source": "m"}, "task": "t", "strategy": "s", "data": {"train": "a", **data}})


# Leaks


LONG = [" ".join(f"w{i}x{j}" for j in range(20)) for i in range(12)]
NEAR = " ".join([*LONG[0].split()[:19], "other"])


@pytest.fixture
def leaking(write):
    train = write("train.jsonl", lines({"text": text} for text in LONG[:10]))
    test = write("test.jsonl", lines({"text": text} for text in (NEAR, LONG[3], LONG[10])))
    return DataSection(train=train, validation=None, test=test)


def test_leaks_end_the_command_with_their_number_and_places(leaking, text_task):
    near = "1 more nearly", "0.8", "train.jsonl:1 ≈ test.jsonl:1"
    with raises(DataError, "1 of 3 test rows", "train.jsonl:4 = test.jsonl:2", *near, "data.leaks: drop"):
        make_splits(leaking, text_task, 0)


def test_dropping_takes_rows_out_of_training_and_leaves_the_held_out_ones(leaking, text_task, audit):
    dropping = leaking.model_copy(update={"leaks": "drop"})
    splits = make_splits(dropping, text_task, 0)
    assert held(splits) == {"train": [*LONG[1:3], *LONG[4:10]], "test": [NEAR, LONG[3], LONG[10]]}
    [leak] = splits.audited().facts["leaks"]
    assert (leak["count"], leak["near"], leak["dropped"]) == (1, 1, 2)
    assert leak["places"] == ["train.jsonl:4 = test.jsonl:2", "train.jsonl:1 ≈ test.jsonl:1"]
    assert splits.audited().facts["splits"]["train"]["rows"] == 8
    assert splits.train.where(2) == "train.jsonl:5"
    assert "2 of 10 training rows are left out" in audit(text_task, dropping).findings[1].text


def test_without_near_duplicates_only_equal_rows_leak(leaking, text_task):
    section = leaking.model_copy(update={"near_duplicates": None, "leaks": "warn"})
    facts = make_splits(section, text_task, 0).audited().facts
    assert (facts["leaks"][0]["count"], facts["leaks"][0]["near"]) == (1, 0)
    assert facts["near_duplicates"] is None


def test_an_overlap_of_validation_and_test_is_a_warning(write, text_task):
    section = DataSection(
        train=write("a.jsonl", lines({"text": text} for text in LONG[:5])),
        validation=write("v.jsonl", lines({"text": text} for text in (LONG[6], NEAR + " x"))),
        test=write("t.jsonl", lines({"text": text} for text in (LONG[6], LONG[7]))),
        leaks="drop",
    )
    splits = make_splits(section, text_task, 0)
    leak = splits.audited().facts["leaks"][-1]
    assert (leak["between"], leak["count"], leak["places"]) == (["validation", "test"], 1, ["v.jsonl:1 = t.jsonl:1"])
    assert held(splits)["train"] == LONG[1:5]
    assert held(splits)["validation"] == [LONG[6], NEAR + " x"]


def test_near_duplicates_stay_on_one_side_of_a_cut(write, text_task):
    rows = [text for i in range(12) for text in (LONG[i], LONG[i] + " more", LONG[i].upper() + ".")]
    source = write("a.jsonl", lines({"text": text} for text in rows))
    for seed in range(8):
        splits = make_splits(DataSection(train=source, validation=0.2, test=0.2), text_task, seed)
        assert splits.audited().facts["leaks"] == []
        sides = [{text.split()[0].lower() for text in texts} for texts in held(splits).values()]
        assert sum(map(len, sides)) == 12
    apart = DataSection(train=source, validation=0.2, test=0.2, split={"duplicates": "apart"}, leaks="fail")
    with raises(DataError, "nearly repeat"):
        make_splits(apart, text_task, 0)


@pytest.mark.parametrize("leaks", ["warn", "drop"])
@pytest.mark.parametrize("duplicates", ["together", "apart"])
@pytest.mark.parametrize("parts", [{"validation": 0.2, "test": 0.2}, {"validation": None}])
def test_rows_go_to_the_same_side_without_the_audit(write, text_task, leaks, duplicates, parts):
    rows = [text for i in range(12) for text in (LONG[i], LONG[i] + " more", LONG[i].upper() + ".")]
    source = write("a.jsonl", lines({"text": text} for text in rows))
    test = {} if "test" in parts else {"test": write("t.jsonl", lines({"text": text} for text in (NEAR, LONG[3])))}
    section = DataSection(train=source, leaks=leaks, split={"duplicates": duplicates}, **{**parts, **test})
    bare = make_splits(section, text_task, 0, audited=False)
    assert held(bare) == held(make_splits(section, text_task, 0))
    assert bare.to_audit is None
