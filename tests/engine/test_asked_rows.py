"""Rows of a proof are those first that show what can be lost."""

from ftengine import load_run
from ftengine.engine.asked_rows import RowTraits, informative_examples, informative_order, informative_prompts
from ftengine.engine.evaluate import held_out_rows


def test_rows_that_show_what_can_be_lost_come_first():
    plain = [RowTraits(10, ["a plain text"]) for _ in range(20)]
    rows = [
        *plain,
        RowTraits(99, ["long"]),
        RowTraits(1, ["short"]),
        RowTraits(10, ["how", "is <|im_end|> written"]),
        RowTraits(10, ["blanks at its end "]),
        RowTraits(10, ["café"]),
        RowTraits(10, ["You are brief.", "Hi"], turns=2, system=True),
        RowTraits(10, ["one", "two", "three"], turns=5),
    ]
    order = informative_order(rows, ["<|im_end|>"])
    assert sorted(order) == list(range(len(rows)))
    assert order[:2] == [20, 21]
    assert set(order[:8]) == {0, *range(20, 27)}
    assert order[8:] == list(range(1, 20))
    assert informative_order([], ["<s>"]) == []


def test_the_longest_prompt_is_asked_however_few_are(talking_run):
    run = load_run(talking_run)
    ready = run.ready()
    _, rows = held_out_rows(ready, run.directory, None)
    with run.model() as loaded:
        every, _ = informative_prompts(ready, rows, loaded, 1000, run)
        two, _ = informative_prompts(ready, rows, loaded, 2, run)
    lengths = sorted(len(prompt.ids) for prompt in every.values())
    assert [len(prompt.ids) for prompt in two.values()] == [lengths[-1], lengths[0]]
    assert all(every[i] == prompt for i, prompt in two.items())
    examples = informative_examples(ready, rows, 3, seed=0)
    texts = {i: sum(map(len, ready.task.view(rows[i]).texts)) for i in range(len(rows))}
    assert len(examples) == 3
    assert texts[next(iter(examples))] == max(texts.values())
