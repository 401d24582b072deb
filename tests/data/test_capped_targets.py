"""Audit `capped-targets`: numbers of one file that end at a bound, where the other file's go on."""

import json
import random

import pytest


@pytest.fixture
def found(write, label_task, audit):
    """Audit the numbers of a training and a test file."""

    def found(train, test):
        names = [write(f"{name}.jsonl", "".join(json.dumps({"text": f"flat {name} {i}", "label": value}) + "\n"
                                                for i, value in enumerate(values)))
                 for name, values in (("train", train), ("test", test))]  # fmt: skip
        return list(audit(label_task, names[0], test=names[1], only="capped-targets").findings)

    return found


def prices(count, seed):
    rng = random.Random(seed)
    return [round(rng.lognormvariate(5, 0.6), 1) + 0.05 for _ in range(count)]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("cap", "sign"), [(min, 250.5), (max, 100.5)])
def test_numbers_at_a_bound_that_the_other_file_passes_are_an_alarm(found, split, cap, sign):
    sides = {"train": prices(200, 1), "test": prices(100, 2)}
    sides[split] = [cap(value, sign) for value in sides[split]]
    (one,) = found(*sides.values())
    assert (one.kind, one.level, one.figures["split"], one.figures["capped"]) == ("splits", "alarm", "test", split)
    assert one.figures["bound"] == sign
    assert min(one.figures["share"], one.figures["beyond"]) > 0.1


@pytest.mark.parametrize("seed", range(10))
def test_numbers_of_one_source_and_bounds_that_all_files_have_are_not(found, seed):
    train, test = prices(200, seed), prices(100, seed + 50)
    assert found(train, test) == []
    assert found([min(value, 250.5) for value in train], [min(value, 250.5) for value in test]) == []
