"""Timing in turn, on a clock that the test moves."""

from itertools import pairwise

from ftengine_bench.timing import LEAST, WARM_UP, measure, paired_ratio, spread


class Stopwatch:
    """A clock on which time passes only where an action says so."""

    def __init__(self):
        self.now = 0.0
        self.called = []

    def ready(self):
        self.now += 1000.0  # what happens before a repetition counts for nothing

    def mark(self):
        return self.now

    def seconds(self, marks):
        return [after - before for before, after in pairwise(marks)]

    def takes(self, name, *seconds):
        """Return parts of an action that take so long."""

        def part(length):
            def call():
                self.called.append(name)
                self.now += length

            return call

        return [part(length) for length in seconds]


def test_percentiles_interpolate():
    assert spread([float(value) for value in range(11)]) == {"p20": 2.0, "p50": 5.0, "p80": 8.0}
    assert spread([0.0, 1.0]) == {"p20": 0.2, "p50": 0.5, "p80": 0.8}


def test_each_part_is_timed_by_itself_and_nothing_around_it():
    clock = Stopwatch()
    times = measure({"layer": clock.takes("layer", 2.0, 3.0)}, clock, 0.0)
    assert times == {"layer": [[2.0, 3.0]] * LEAST}


def test_every_round_has_every_action_once_in_changing_order():
    clock = Stopwatch()
    names = ["a", "b", "c"]
    measure({name: clock.takes(name, 1.0) for name in names}, clock, 0.0)
    counted = clock.called[3 * WARM_UP :]
    rounds = [counted[i : i + 3] for i in range(0, len(counted), 3)]
    assert [sorted(members) for members in rounds] == [names] * LEAST
    assert len({tuple(members) for members in rounds}) > 1


def test_a_ratio_compares_within_a_round():
    # The machine became ten times slower in the second round; both did.
    assert paired_ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == 2.0
