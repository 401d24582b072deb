"""Text from data cannot steer a terminal; numbers keep the digits that matter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftengine.api import Estimate
from ftengine.text import against, cut, duration, number, percent, printable, size, with_ends

STEERING = {
    chr(i) for i in (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
"""C0 and C1 controls but newline and tab, and what embeds, overrides or isolates a direction of writing."""


@given(st.text() | st.text(st.sampled_from(sorted(STEERING))))
def test_what_is_printed_steers_no_terminal(text):
    shown = printable(text)
    assert not set(shown) & STEERING
    shown.encode("utf-8")  # lone surrogates do not come through either


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(0.951234), "0.9512"),
        (number(-1234.5), "−1,234"),
        (number(999.96), "1,000"),
        (number(0), "0"),
        (number(None), "–"),
        (number(999_999.0), "999,999"),
        (number(-1e6), "−1.00e6"),
        (number(3_566_206_268.0, 4), "3.57e9"),
        (number(3_566_206_268.0, -6), "3.566e9"),
        (with_ends(Estimate(5_205_526_376, 4_244_715_279, 6_281_576_139, 100)), "5.21e9 (4.24e9 to 6.28e9)"),
        (with_ends(Estimate(61_450.2, 54_189.1, 69_335.4, 100)), "61,450 (54,189 to 69,335)"),
        (
            against(Estimate(4_621_243_596, None, None, 9), Estimate(4_621_253_596, None, None, 9)),
            "4.6212e9 against 4.6213e9",
        ),
        (percent(0.0324), "3.2 %"),
        (percent(0.00031), "0.031 %"),
        (percent(0), "0 %"),
        (duration(0.04), "0.0 s"),
        (duration(9.97), "10 s"),
        (duration(59.7), "1 min 0 s"),
        (duration(80), "1 min 20 s"),
        (duration(3599.8), "1 h 0 min"),
        (duration(7500), "2 h 5 min"),
        (size(512), "512 B"),
        (size(1.2 * 2**30), "1.2 GiB"),
        (size(310 * 2**20), "310 MiB"),
        (size(2**20 - 1), "1.0 MiB"),
        (size(3000 * 2**40), "3000.0 TiB"),
        (cut("abcdef", 4), "abcd… (2 characters more)"),
        (cut("abcd", 4), "abcd"),
    ],
)
def test_figures_for_people(shown, expected):
    assert shown == expected
