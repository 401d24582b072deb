#!/usr/bin/env bash
# One round of rejection sampling: the base answers sums eight times, and learns from answers that are right.
# Some minutes on two cores. TASK=chain_sum takes reasoning-gym's (`pip install reasoning-gym`) in place of sums.
set -euo pipefail
cd "$(dirname "$0")/../.."
recipe=examples/sums/sums.yaml

python examples/sums/prepare.py --output sums ${TASK:+--task "$TASK"}
ftengine predict $recipe --samples 8 --option max_new_tokens=24 --batch-size 32 \
    --input sums/train.jsonl --output sums/answers.jsonl
ftengine pairs $recipe --function examples/sums/score.py:right --each 4 \
    --input sums/answers.jsonl --output sums/round1.jsonl
ftengine train $recipe --set data.train=sums/round1.jsonl
