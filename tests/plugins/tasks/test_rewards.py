"""Rewards of the box, how several come together, and answers that a reward must not pay for."""

import json
import os

import pytest
from expected import raises

from ftengine.errors import DataError
from ftengine_builtins.ready_rewards import exact_match, json_schema, regex
from ftengine_builtins.rewards import RewardConfig, Rewards

FUNCTIONS = """
def contains(answer, wanted):
    return wanted in answer or answer in wanted

def equals(answer, wanted):
    return answer == wanted

def brief(answer):
    return -len(answer) / 100

def breaks(answer):
    return 1 / len(answer)

def waits(answer, folder):
    import os, pathlib, time
    pathlib.Path(folder, answer).write_text(str(os.getpid()))
    while answer in "ab" and len(list(pathlib.Path(folder).iterdir())) < 2:  # each waits for the other
        time.sleep(0.01)
    return ord(answer)

def grows(answer, size):
    return len(bytearray(size))
"""


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    file = tmp_path_factory.mktemp("rewards") / "score.py"
    file.write_text(FUNCTIONS)

    def make(*names, **weights):
        configs = [RewardConfig(function=f"{file}:{name}", weight=weights.get(name, 1.0)) for name in names]
        return Rewards(configs, 5.0, "task 'grpo'")

    return make


def test_those_of_the_box():
    assert [exact_match(answer, 12) for answer in ("12", " 12\n", "12.", "")] == [True, True, False, False]
    assert [regex(answer, r"\d+( \w)?") for answer in ("12", " 12 m ", "x 12", "")] == [True, True, False, False]
    schema = {"type": "object", "required": ["a"]}
    assert [json_schema(answer, schema) for answer in ('{"a": 1}', "{}", "[]", "a")] == [True, False, False, False]
    assert json_schema("[" * 100_000, schema) is False


SQUARE = "def square(x):\n    return x * x"
CLASSES = """
import dataclasses, pickle, typing
@dataclasses.dataclass
class Point:
    x: int
    names: typing.ClassVar[int] = 0
assert Point.__annotations__["x"] is int and pickle.loads(pickle.dumps(Point(1))) == Point(1)
"""
LIMITS = """
import resource, signal, sys
assert resource.getrlimit(resource.RLIMIT_CPU)[1] < 10 and signal.getitimer(signal.ITIMER_REAL)[0] > 0
assert not sys.flags.hash_randomization and not any("ftengine_builtins" in place for place in sys.path)
"""
ANSWERS = {
    "in a fenced block": (f"Sure:\n```python\n{SQUARE}\n```\nDone.", True),
    "alone": (SQUARE, True),
    "that prints a lot": (f"print('x' * 50_000_000)\n{SQUARE}", True),
    "wrong": (SQUARE.replace("*", "+"), False),
    "no Python": ("I do not know", False),
    "none": ("", False),
    "that ends its process": (f"{SQUARE}\nimport os; os._exit(0)", False),
    "that takes too much memory": (f"{SQUARE}\nx = bytearray(1 << 34)", False),
    "that writes a file": (f"{SQUARE}\nf = open('x', 'w'); f.write('x'); f.flush()", False),
    "that reads the environment": (f"import os\n{SQUARE}\nassert os.environ.get('HOME')", False),
    "that hangs": (f"{SQUARE}\nwhile True: pass", False),
    "that looks at its limits": (f"{LIMITS}\n{SQUARE}", True),
    "with classes": (f"{CLASSES}\n{SQUARE}", True),
    "in a block of Python 3": (f"```python3\n{SQUARE}\n```\nThat is all.\n", True),
    "with other blocks": (f"A ```b``` c\n```py\n{SQUARE}\n```\n```text\n9\n```\nSo:\n```\n9\n```\nDone.", True),
}


@pytest.mark.slow
def test_code_passes_the_tests_of_its_row_or_gets_nothing():
    """Whatever it does, it has a reward: what fails, hangs or dies is wrong, and no failure of the function's."""
    made = Rewards([RewardConfig(name="unit-tests")], 5.0, "")
    assert (made.columns(), made.runs_code()) == ({"tests"}, "the code in the model's answers")
    tests = ["assert square(3) == 9", "assert square(-1) == 1"]
    for case, (answer, passes) in ANSWERS.items():
        scored = made.score(answer, {"tests": tests})
        assert (scored.total, scored.error) == (passes, ""), case
    assert made.score(SQUARE, {"tests": json.dumps(tests)}).total == 1
    assert "no tests" in made.score(SQUARE, {"tests": []}).error
    with raises(DataError, "`tests`", "unit-tests"):
        made.check_row({"prompt": "square"})


def test_one_of_the_box_reads_the_column_that_it_is_given():
    made = Rewards(
        [RewardConfig(name="exact-match", column="sum"), RewardConfig(name="regex", pattern=r"\d+")], 5.0, ""
    )
    assert made.columns() == {"sum"}
    assert made.runs_code() is None
    arguments = made.arguments({"prompt": "1 + 1", "sum": 2}, {"completion": "two"})
    assert [made.score(answer, arguments).total for answer in ("2", "3", "two")] == [2, 1, 0]
    with raises(DataError, "`sum`", "exact-match"):
        made.check_row(made.arguments({"prompt": "1 + 1"}, {}))


def test_each_compares_with_its_own_column(rewards):
    """And a function of the user's gets the column that its parameter names, `wanted` too."""
    first, second = (RewardConfig(name="exact-match", column=column) for column in ("sum", "word"))
    made = Rewards([first, second, rewards("equals").configs[0]], 5.0, "")
    assert made.columns() == {"sum", "word", "wanted"}
    arguments = made.arguments({"sum": 2, "word": "two", "wanted": "II"}, {})
    made.check_row(arguments)
    assert [made.score(answer, arguments).rewards for answer in ("2", "two", "II")] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


def test_a_reward_model_gets_the_prompt_of_a_row_in_any_layout():
    config = RewardConfig(run="runs/reward")
    asked = [{"role": "user", "content": "2 + 2?"}]
    for row in (
        {"messages": [*asked, {"role": "assistant", "content": "4"}]},
        {"instruction": "2 + 2?", "output": "4"},
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
    ):
        assert config.arguments({**row, "completion": "4"})["messages"] == asked
    assert config.arguments({"prompt": "2 + 2?", "completion": "4"})["prompt"] == "2 + 2?"
    with raises(DataError, "prompt"):
        Rewards([config], 5.0, "").check_row({"text": "4"})


def test_options_that_a_reward_cannot_use_are_refused():
    cases = [
        ({"name": "regex", "pattern": "("}, "pattern"),
        ({"name": "regex", "pattern": "x", "json_schema": {}}, "json_schema"),
        ({"name": "exact-match", "pattern": "x"}, "pattern"),
        ({"function": "a.py:b", "column": "sum"}, "column"),
    ]
    for options, fact in cases:
        with raises(ValueError, f"`{fact}`"):
            RewardConfig(**options)


def test_weights_and_failures(rewards):
    made = rewards("equals", "brief", "breaks", brief=2.0)
    scored = made.score("ab", {"wanted": "ab"})
    assert scored.rewards == (1.0, -0.02, 0.5)
    assert scored.total == pytest.approx(1 - 0.04 + 0.5)
    failed = made.score("", {"wanted": "ab"})
    assert (failed.rewards, failed.total) == ((0.0, 0.0, None), None)
    assert "breaks" in failed.error
    assert "ZeroDivisionError" in failed.error


def test_a_function_that_takes_more_than_half_of_the_memory_fails(rewards):
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert "MemoryError" in rewards("grows").score("a", {"size": size}).error


def test_answers_are_scored_side_by_side_and_in_order(rewards, tmp_path):
    """The first two end only where both are scored at one time."""
    made = Rewards(rewards("waits").configs, 5.0, "", processes=2)
    scored = made.score_each([(answer, {"folder": str(tmp_path)}) for answer in "abcdef"])
    assert [one.total for one in scored] == [ord(answer) for answer in "abcdef"]
    assert len({file.read_text() for file in tmp_path.iterdir()}) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "faults"),
    [
        (("contains",), ["an empty answer", "over and over"]),
        (("equals",), []),
        (("equals", "brief"), []),
        (("brief",), ["an empty answer"]),
        (("breaks",), ["ZeroDivisionError"]),
    ],
    ids=str,
)
def test_answers_that_nobody_wants(rewards, names, faults):
    """They are compared with the row's own answer, where there is one."""
    rows = [("what?", {"wanted": word, "completion": word}) for word in ("red", "green")]
    found = list(rewards(*names).faults(rows))
    assert len(found) == len(faults), found
    assert all(fault in text for fault, text in zip(faults, found, strict=True))
