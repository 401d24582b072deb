"""judgements.jsonl: what is written is read again, whatever happened to the server in between."""

import errno
import json
import os
import threading
from collections import Counter
from dataclasses import replace

import pytest

from ftengine.errors import RunError
from ftengine_studio import Judgement, append, latest, read
from ftengine_studio.judgements import FILE, current, hash_of, now

JUDGED = Judgement(
    prompt=3,
    prompt_hash=hash_of("Why?"),
    left="tuned",
    right="base",
    verdict="left",
    judge="Ada",
    kind="person",
    time=now(),
    seed=0,
    left_length=5,
    right_length=7,
    note="shorter \u2028 and right",
)


def test_a_judgement_is_read_as_it_was_made(tmp_path):
    assert read(tmp_path) == []
    append(tmp_path, JUDGED)
    append(tmp_path, replace(JUDGED, verdict="tie", note=None))
    assert read(tmp_path) == [JUDGED, replace(JUDGED, verdict="tie", note=None)]
    assert JUDGED.preferred == "tuned"


def test_a_correction_replaces_the_same_judges_earlier_verdict(tmp_path):
    swapped = replace(JUDGED, left="base", right="tuned", verdict="right")
    other = replace(JUDGED, judge="Grace")
    assert latest([JUDGED, other, swapped]) == [other, swapped]


def test_judgements_of_other_answers_are_kept_and_not_counted():
    old, new = replace(JUDGED, answers_hash="old"), replace(JUDGED, answers_hash="new", verdict="tie")
    other = replace(new, judge="Grace")
    assert current([old, new, other], {JUDGED.prompt_hash: "new"}) == ([new, other], 0)
    assert current([old, other], {JUDGED.prompt_hash: "new"}) == ([other], 1)
    assert current([old, new], {JUDGED.prompt_hash: "old"}) == ([old], 0)  # these answers have come back
    assert current([old], {"gone": "old"}) == ([], 1)
    assert current([old, other], {}) == ([other], 1)  # the last judgement's answers, as these are not known
    assert current([JUDGED], {JUDGED.prompt_hash: "new"}) == ([JUDGED], 0)  # which says nothing of its answers


def test_half_a_line_of_a_killed_server_is_left_out_and_written_over(tmp_path):
    append(tmp_path, JUDGED)
    with open(tmp_path / FILE, "a") as file:
        file.write('{"format": 1, "prom')
    with pytest.warns(UserWarning, match="line 2"):
        assert read(tmp_path) == [JUDGED]
    append(tmp_path, replace(JUDGED, prompt=4))
    assert [judgement.prompt for judgement in read(tmp_path)] == [3, 4]


@pytest.mark.parametrize(
    "change",
    [{"verdict": "both"}, {"format": 2}, {"prompt": "3"}, {"prompt": True}, {"further": 1}, {"kind": None}],
    ids=str,
)
def test_other_damage_is_named_by_its_line(tmp_path, change):
    append(tmp_path, JUDGED)
    line = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(f"{json.dumps(line)}\n{json.dumps(line | change)}\n{json.dumps(line)}\n")
    with pytest.raises(RunError, match="line 2"):
        read(tmp_path)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    append(tmp_path, JUDGED)
    before = (tmp_path / FILE).read_bytes()
    pwrite = os.pwrite

    def full(opened, line, at):
        if at > len(before):
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(opened, line[:20], at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunError, match="cannot write"):
        append(tmp_path, JUDGED)
    assert (tmp_path / FILE).read_bytes() == before


def test_many_judge_at_once_and_no_line_is_lost(tmp_path):
    people = [threading.Thread(target=_judge_all, args=(tmp_path, f"person {i}")) for i in range(8)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    kept = read(tmp_path)
    assert Counter(one.judge for one in kept) == {f"person {i}": 12 for i in range(8)}


def _judge_all(run, name):
    for prompt in range(12):
        append(run, replace(JUDGED, prompt=prompt, judge=name))
