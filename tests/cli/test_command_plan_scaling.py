"""How long a step would take on many processes, by hand-computed numbers."""

import json

import pytest
from expected import raises

from ftengine.errors import InputError
from ftengine.parallel.scaling import Scale, advice, bandwidth_of, communication, sizes_up_to

GB = 10**9


def test_gradients_travel_a_ring_and_hide_behind_the_backward_pass():
    # 100 MB over 1 GB/s by 4 processes: 2 · 3/4 · 0.1 s; in 4 buckets of 25 MiB, so 3/4 of that may be hidden.
    assert communication(4, 0.1 * GB, GB, 0.05) == pytest.approx((0.15, 0.10))
    assert communication(4, 0.1 * GB, GB, 1.0) == pytest.approx((0.15, 0.0375))
    assert communication(1, 0.1 * GB, GB, 0.05) == (0, 0)
    # An adapter's 10 MB are one bucket, which waits for the end of the backward pass.
    assert communication(2, 0.01 * GB, GB, 1.0) == pytest.approx((0.01, 0.01))


@pytest.mark.parametrize(
    ("text", "expected"), [("400Gb/s", 50e9), ("50GB/s", 50e9), ("25 Gbps", 3.125e9), ("1.5Mbit/s", 187500)]
)
def test_a_bandwidth_is_in_bits_or_bytes(text, expected):
    assert bandwidth_of(text) == expected


@pytest.mark.parametrize("text", ["400", "400 Gigabit", "0Gb/s", "-1Gb/s", "fast", "400Gb"])
def test_another_bandwidth_is_refused(text):
    with raises(InputError, f"--bandwidth '{text}'"):
        bandwidth_of(text)


def test_what_limits_is_reported_with_what_would_change_it():
    # 1 s of computation, 1 s of waiting: nine times the computation makes the waiting a tenth; 2 s · 1 GB/s fit into
    # 1/9 s at 18 GB/s.
    network = Scale(8, 64, 10, 1.0, 2.0, 1.0)
    (said,) = advice([network], 2, 1000, GB)
    assert "limited by the network: 50 %" in said
    assert "train.accumulate=18 (a step then holds 576 examples) or 144 Gb/s" in said
    (computation,) = advice([Scale(8, 64, 10, 1.0, 2.0, 0.1)], 1, 64, GB)
    (data,) = advice([Scale(8, 64, 10, 1.0, 2.0, 0.1)], 1, 30, GB)
    assert data.startswith("limited by data: ")
    assert "64 examples, but there are 30" in data
    assert "at most 3 processes" in data
    assert computation.startswith("limited by computation, which is 91 %")
    assert network.to_json()["seconds"] == 20
    assert sizes_up_to(1) == [1]
    assert sizes_up_to(12) == [1, 2, 4, 8, 12]


def test_plan_computes_and_shows_it(ftengine, recipe):
    asked = ("--processes", "6", "--bandwidth", "1Mb/s", "--set", "train.batch_tokens=1")  # each example by itself
    found = json.loads(ftengine("plan", recipe, *asked, "--json").stdout)
    scales, estimate = found["scaling"]["scales"], found["estimate"]
    assert [one["processes"] for one in scales] == [1, 2, 4, 6]
    assert scales[0]["compute_seconds"] * scales[0]["steps"] == pytest.approx(estimate["train_seconds"])
    assert scales[0]["communication_seconds"] == 0
    assert estimate["gradient_bytes"] == 4 * found["model"]["trainable_parameters"]
    assert scales[3]["communication_seconds"] == pytest.approx(2 * 5 / 6 * estimate["gradient_bytes"] / 125_000)
    assert scales[3]["examples_a_step"] == 6 * scales[0]["examples_a_step"]
    step = scales[0]["compute_seconds"]
    assert 0 < estimate["backward_seconds"] < step / scales[0]["examples_a_step"]
    text = " ".join(ftengine("plan", recipe, *asked).stdout.split())
    assert "0.001 Gb/s" in text
    assert "limited by the network" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--processes", "4"], "--processes and --bandwidth go together"),
        (["--processes", "4", "--bandwidth", "1Gb/s", "--no-measure"], "Leave --no-measure and --parameters-only out"),
    ],
)
def test_half_a_question_is_refused(ftengine, recipe, given, message):
    assert message in ftengine("plan", recipe, *given, code=2).stderr
