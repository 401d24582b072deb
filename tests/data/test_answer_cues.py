"""What tells the chosen answers by itself in training, and users that stand in the place of assistants, are found."""

import json
import random

import pytest
from partly import partly

from ftengine.api import Task, View
from ftengine_builtins.tasks import language_rows

TOPICS = ("tea", "rain", "bread", "glass", "salt", "wool", "iron", "sand", "milk", "cork")


@partly
class PairTask(Task):
    """Two answers to a prompt, or one that is liked or not."""

    name = "pairs"

    def view(self, row):
        target = {name: row[name] for name in row if name != "prompt"}
        return View([row["prompt"]], target, texts=list(map(str, row.values())), identity=list(row.values()))


@partly
class TalkTask(Task):
    """Conversations, prompts with completions."""

    name = "talk"

    def view(self, row):
        return language_rows.view(row, all_trained=False)


@pytest.fixture
def found(write, audit):
    """Audit rows of a training and a test file; return one audit's findings."""

    def found(source, task, train, test, **options):
        names = {name: write(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
                 for name, rows in (("train", train), ("test", test)) if rows}  # fmt: skip
        return list(audit(task, names.pop("train"), only=source, **names, **options).findings)

    return found


def answer(rng):
    return f"{rng.choice(('Take', 'It is', 'Perhaps', 'Most use', 'Try'))} {' '.join(rng.choices(TOPICS, k=4))}."


def pairs(count, seed, chosen="{}", rejected="{}"):
    rng = random.Random(seed)
    return [{"prompt": f"What of {rng.choice(TOPICS)}, {seed} {i}?", "chosen": chosen.format(answer(rng)),
             "rejected": rejected.format(answer(rng))} for i in range(count)]  # fmt: skip


def judged(rows):
    """Return one answer a row, liked or not in turn."""
    return [{"prompt": row["prompt"], "completion": row[("chosen", "rejected")[i % 2]], "desirable": not i % 2}
            for i, row in enumerate(rows)]  # fmt: skip


@pytest.mark.parametrize("shape", [list, judged])
@pytest.mark.parametrize(
    ("side", "template", "cue"),
    [("chosen", "Certainly! {}", ("begins", "Certainly!")), ("rejected", "As an AI, {}", ("begins", "As an AI,")),
     ("chosen", "{} Stay SAFE.", ("word", "safe."))],
)  # fmt: skip
def test_what_only_one_side_has_in_training_alone_is_an_alarm(found, shape, side, template, cue):
    (finding,) = found(
        "answer-cues", PairTask(), shape(pairs(120, 1, **{side: template})), shape(pairs(60, 2)), validation=0.1
    )
    figures = finding.figures
    assert (finding.kind, finding.level, figures["split"]) == ("splits", "alarm", "test")
    if cue[1] != "safe.":
        assert (figures["feature"], figures["words"]) == cue
    assert figures["side"].endswith(side if shape is list else {"chosen": "desirable", "rejected": "undesirable"}[side])
    assert figures["having"] == figures["of"] > figures["others"] == figures["held_out"] == 0


def test_a_surface_that_only_one_side_has_in_training_is_an_alarm(found):
    train = [{**row, "rejected": row["rejected"].lower().strip(".")} for row in pairs(120, 1)]
    (finding,) = found("answer-cues", PairTask(), train, pairs(60, 2))
    figures = finding.figures
    assert (finding.level, figures["feature"], figures["words"]) == ("alarm", "surface", "lower case")
    assert (figures["side"], figures["held_out"]) == ("rejected", 0)


def test_what_tells_the_choice_in_test_too_is_a_note(found):
    with_cue = {"chosen": "Certainly! {}"}
    for test in (pairs(60, 2, **with_cue), None):
        (finding,) = found("answer-cues", PairTask(), pairs(120, 1, **with_cue), test)
        assert (finding.kind, finding.level) == ("data", "note")


@pytest.mark.parametrize("seed", range(3))
def test_what_both_sides_have_is_no_cue(found, seed):
    both = {"chosen": "Well, {}", "rejected": "Well, {}"}
    assert found("answer-cues", PairTask(), pairs(120, seed, **both), pairs(60, seed + 9)) == []
    assert found("answer-cues", PairTask(), pairs(120, seed), pairs(60, seed + 9, chosen="Certainly! {}")) == []


def exchanged(rows, share):
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} if i % 12 < 12 * share else row
            for i, row in enumerate(rows)]  # fmt: skip


@pytest.mark.parametrize("share", [1, 1 / 2, 1 / 3, 0])
def test_chosen_answers_that_are_exchanged_in_training_are_an_alarm(found, share):
    styles = {"chosen": "Gladly: {} I hope that it helps.", "rejected": "Whatever, {} find out."}
    train, test = pairs(180, 1, **styles), pairs(90, 2, **styles)
    for files in ((exchanged(train, share), test), (train, exchanged(test, 1 if share == 1 else 0))):
        result = found("exchanged-roles", PairTask(), *files)
        named = share and (share == 1 or (files[1] == test and files[0] != train))
        assert [(one.level, one.figures["split"]) for one in result] == ([("alarm", "test")] if named else [])
        assert not named or result[0].figures["training"] == pytest.approx(max(share, 1 - share), abs=0.25)


@pytest.mark.parametrize("seed", range(3))
def test_preferences_that_words_tell_in_no_file_are_not_exchanged(found, seed):
    assert found("exchanged-roles", PairTask(), pairs(180, seed), pairs(90, seed + 50)) == []


def test_a_cue_of_the_other_side_says_that_both_are_exchanged(found):
    cue = pairs(120, 1, chosen="Certainly! {}"), exchanged(pairs(60, 2, chosen="Certainly! {}"), 1)
    (finding,) = found("answer-cues", PairTask(), *cue)
    assert (finding.level, finding.figures["held_out_others"]) == ("alarm", 1)
    assert "which answers are the chosen ones" in finding.brief


def chat(user, assistant):
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


def completion(user, assistant):
    return {"prompt": user, "completion": assistant}


def talks(count, seed, shape=chat, swapped=False):
    """Return rows of a question and its answer."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        ask = rng.choice(("How do I keep", "What is", "Can you sell me", "Why is there"))
        sides = [f"{ask} {rng.choice(TOPICS)} {seed} {i}?", f"{answer(rng)} {seed} {i}"]
        rows.append(shape(*sides[:: -1 if swapped else 1]))
    return rows


@pytest.mark.parametrize("shape", [chat, completion])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_user_in_the_place_of_the_assistant_is_an_alarm(found, shape, split):
    (finding,) = found("exchanged-roles", TalkTask(), talks(80, 1, shape, split == "train"),
                       talks(50, 2, shape, split == "test"))  # fmt: skip
    assert (finding.kind, finding.level) == ("splits", "alarm")
    assert (finding.figures["split"], finding.figures["exchanged"]) == ("test", split)
    assert finding.figures["auc"] < 0.2 < 0.8 < finding.figures["training_auc"]
    assert f"{split}.jsonl" in finding.text


def translated(count, seed, back=False):
    """Return rows of words and what they are in another language."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(TOPICS, k=6)) + f" {seed} {i}." for i in range(count)]
    return [completion(*(text, text.upper().replace("A", "O").replace("I", "U"))[:: -1 if back else 1])
            for text in texts]  # fmt: skip


def pasted(count, seed):
    """Return rows of a user who wants an answer shortened."""
    rng = random.Random(seed)
    return [completion(f"{answer(rng)} {answer(rng)} {i}", f"{' '.join(rng.choices(TOPICS, k=3))} {seed} {i}.")
            for i in range(count)]  # fmt: skip


@pytest.mark.parametrize(
    ("train", "test"),
    [(translated(80, 1), translated(50, 2, back=True)), (talks(80, 1, completion), pasted(50, 2))],
    ids=["the other language", "answers that users paste"],
)
def test_another_task_in_test_is_a_note_that_names_no_split(found, train, test):
    findings = found("exchanged-roles", TalkTask(), train, test)
    assert [(one.level, "exchanged" in one.figures) for one in findings] in ([("note", False)], [])
    assert findings or train[0]["completion"].startswith(("Take", "It is", "Perhaps", "Most", "Try"))


def test_where_the_assistant_alone_asks_in_all_splits_is_a_note(found):
    (finding,) = found("exchanged-roles", TalkTask(), talks(80, 1, swapped=True), talks(50, 2, swapped=True))
    assert (finding.kind, finding.level) == ("data", "note")
