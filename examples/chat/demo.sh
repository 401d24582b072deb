#!/usr/bin/env bash
# Fine-tune SmolLM2-135M-Instruct on small talk and compare it with what it was before.
# `make demo` runs this; by hand, first: source .venv/bin/activate
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

# A run never overwrites another one, so each demo takes the first free folder.
output=runs/demo
for ((n = 2; ; n++)); do
    [[ -e $output ]] || break
    output=runs/demo-$n
done

run python examples/chat/prepare.py --distinct
run ftengine plan examples/chat/demo.yaml
run ftengine train examples/chat/demo.yaml --set output="$output"

prompts=(--input examples/chat/prompts.jsonl --option max_new_tokens=60)
run ftengine predict "$output" "${prompts[@]}" --base --output "$output/answers-base.jsonl"
run ftengine predict "$output" "${prompts[@]}" --output "$output/answers-tuned.jsonl"
run python examples/chat/side_by_side.py "$output/answers-base.jsonl" "$output/answers-tuned.jsonl"

printf '\nThe trained part lies in %s, in PEFT format; the whole run in %s.\n' "$output/adapter" "$output"
