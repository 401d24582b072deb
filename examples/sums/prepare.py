"""Write sums to practise on: sums/train.jsonl and sums/test.jsonl, which share no question.

python examples/sums/prepare.py --output sums
python examples/sums/prepare.py --task chain_sum --output sums    # needs `pip install reasoning-gym`
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path


def own(seed: int) -> Iterator[tuple[str, str]]:
    """Yield sums of two numbers below 50, with what they come to."""
    draw = random.Random(seed)
    while True:
        a, b = draw.randrange(50), draw.randrange(50)
        yield f"What is {a} + {b}? Answer with the number alone.", str(a + b)


def of_reasoning_gym(task: str, seed: int) -> Iterator[tuple[str, str]]:
    """Yield questions of one of its tasks, `chain_sum` as simple as it can be: two numbers below 100."""
    import reasoning_gym

    simple = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2} if task == "chain_sum" else {}
    for entry in reasoning_gym.create_dataset(task, size=100_000, seed=seed, **simple):
        yield entry["question"], entry["answer"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("sums"), help="folder (default: sums)")
    parser.add_argument("--task", help="a task of reasoning-gym in place of sums")
    parser.add_argument("--train", type=int, default=240, help="questions to practise on (default: 240)")
    parser.add_argument("--test", type=int, default=100, help="questions to measure by (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    source = own(asked.seed) if asked.task is None else of_reasoning_gym(asked.task, asked.seed)
    questions: dict[str, str] = {}
    for question, answer in source:
        questions.setdefault(question, answer)
        if len(questions) == asked.train + asked.test:
            break
    rows = [{"prompt": q, "completion": answer, "wanted": answer} for q, answer in questions.items()]
    asked.output.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows[: asked.train]), ("test", rows[asked.train :])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (asked.output / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
