"""How often the verdict names what is wrong with a run, by runs whose truth is planted.

    python benchmarks/verdicts.py [--fresh] [--runs FOLDER] [--only TEXT …] [--most N] [--audit] [--kept] [--follow]
        [--out FILE]

Trains each run of benchmarks/verdicts_truths*.py with each of its seeds, keeps its records in FOLDER, and judges them
by the rules that are installed; runs that are there are judged again without being trained again, and with --audit
their data are audited again before. With --kept, runs that are not there are left out. FILE keeps the lines of runs
that were not asked for. A run's cause is *named* where the headline, or the one finding behind it, names it; otherwise
the verdict says something *false* where one of these is an alarm about what is not the case, or good news of a model
that is no good, and it *misses* the cause. Of sound runs any alarm is a false one. `first` in FILE says whether the
headline begins with the cause. Limits of the rules were set on runs with seeds from 0 on; with --fresh seeds go on from
100, and measure them, as long as no rule is changed after they were judged. With --follow, what the verdict on a fault
advises is done to its recipe or its data (verdicts_follow.py, the truth's `mend`), and it trains again: the figure gets
*better*, or the verdict says the *next* thing; that it says again what it said before is a *circle*.

The table is printed as Markdown; FILE has a line a run, with its headline.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verdicts_follow import Mend, advice_on, followed, is_better, key_of
from verdicts_truths import Truth

from ftengine import Recipe, RunRecords, fine_tune
from ftengine.api import SilentListener
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import prepare_data
from ftengine.errors import DataError, InputError
from ftengine.plugins.registry import Registry
from ftengine.report.verdict import judge
from ftengine.run.directory import RunDirectory
from ftengine.run.records import Verdict

FILES = sorted(path.stem for path in Path(__file__).parent.glob("verdicts_truths*.py"))
TRUTHS: list[Truth] = [truth for file in FILES for truth in importlib.import_module(file).TRUTHS]
"""All truths: each file of that name has a list TRUTHS."""

RESULTS = Path(__file__).parent / "results" / "verdicts.json"
OUTCOMES = ("named", "missed", "false")
FRESH = 101
"""The first seed of the runs that no limit was set on."""


def train(truth: Truth, seed: int, folder: Path, mends: Sequence[Mend] = ()) -> float:
    """Train a run into a folder, mended as advised, which keeps its records alone; return the seconds that took."""
    folder.mkdir(parents=True)
    started = time.perf_counter()
    recipe = truth.make(folder, seed)
    for mend in mends:
        recipe = mend(recipe)
    fine_tune(Recipe.make({**recipe, "output": str(folder / "run")}))
    seconds = time.perf_counter() - started
    for weights in [*folder.rglob("*.safetensors"), *folder.rglob("*.pt"), *folder.rglob("*.bin")]:
        weights.unlink()
    shutil.rmtree(folder / "first", ignore_errors=True)
    return seconds


def follow(truth: Truth, seed: int, folder: Path, most: int = 3) -> list[dict[str, Any]]:
    """Do what the verdict of a run advises and train again, up to a few times; return a line a verdict.

    Ends where the figure got better, where the verdict says what it said before, or where a person has to act.
    """
    at = before = folder / "run"
    lines, done = list[dict[str, Any]](), list[Mend]()
    for number in range(most + 1):
        verdict = judge(RunRecords.read(at))
        first = verdict.findings[0]
        better = at != before and is_better(at, before)
        lines.append({"key": key_of(first), "better": better, "level": first.level, "headline": verdict.headline})
        advice = advice_on(truth, verdict)
        said_before = lines[-1]["key"] in [line["key"] for line in lines[:-1]]
        if advice is None or better or said_before or number == most:
            return lines
        lines[-1]["advice"], before = advice[0], at
        done.append(advice[1])
        again = folder / f"followed-{number + 1}"
        if not (again / "seconds.json").is_file():
            shutil.rmtree(again, ignore_errors=True)
            (again / "seconds.json").write_text(json.dumps(train(truth, seed, again, done)))
        at = again / "run"
    return lines


def audit_again(truth: Truth, seed: int, run: Path) -> None:
    """Write a run's audit.json anew, and its data, which are the same."""
    recipe = Recipe.make({**truth.make(run.parent, seed), "output": str(run)})
    prepare_data(Experiment.open(recipe, Registry(), SilentListener())).audit.write(RunDirectory(run))


def outcome(truth: Truth, verdict: Verdict) -> str:
    """Say what the verdict came to."""
    alarms = [one for one in verdict.findings if one.level == "alarm"]
    if truth.name.startswith("sound"):
        return "false" if alarms else "named" if truth.named(verdict.quality) else "missed"
    first = (*verdict.lead, *verdict.rest[:1])
    if any(truth.named(one) for one in first):
        return "named"
    wrong = any(one.level == "alarm" and one.kind not in truth.fits for one in first)
    return "false" if wrong or (verdict.findings[0].level == "good" and not truth.usable) else "missed"


def measure(truth: Truth, seed: int, folder: Path, *, audit: bool) -> dict[str, Any]:
    """Return the line of one run, trained unless its records are there; these are audited again on request."""
    line, kept = {"truth": truth.name, "seed": seed}, folder / "seconds.json"
    if not kept.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        try:
            kept.write_text(json.dumps(train(truth, seed, folder)))
        except InputError as error:
            named = truth.refusable and isinstance(error, DataError)
            return {**line, "outcome": "named" if named else "missed", "refused": str(error)}
    elif audit:
        audit_again(truth, seed, folder / "run")
    verdict, kept_of = judge(RunRecords.read(folder / "run")), {"source", "kind", "level", "text", "explained_by"}
    told = [one.model_dump(include=kept_of, exclude_defaults=True) for one in verdict.findings]
    return {**line, "outcome": outcome(truth, verdict), "first": truth.named(verdict.findings[0]),
            "seconds": json.loads(kept.read_text()), "headline": verdict.headline, "findings": told}  # fmt: skip


def table(lines: list[dict[str, Any]]) -> str:
    """Return a row a truth: outcomes of the runs that limits were set on, and of those that measure them."""
    rows = ["| truth | named | missed | false | named, fresh runs | missed | false |", "|---|--:|--:|--:|--:|--:|--:|"]
    groups = dict.fromkeys(line["truth"].partition(":")[0] for line in lines)
    faults = [line for line in lines if not line["truth"].startswith("sound")]
    parts = [(name, [line for line in lines if line["truth"].partition(":")[0] == name]) for name in groups]
    for name, part in [*parts, ("**all but sound**", faults)]:
        sides = [Counter(one["outcome"] for one in part if (one["seed"] >= FRESH) == fresh) for fresh in (False, True)]
        rows.append(f"| {name} | " + " | ".join(str(side[one]) for side in sides for one in OUTCOMES) + " |")
    return "\n".join(rows)


def merged(before: list[dict[str, Any]], lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of all runs that are still among the truths, newer ones in the place of older ones."""
    every = {(line["seed"], line["truth"]): line for line in (*before, *lines)}
    order = {truth.name: i for i, truth in enumerate(TRUTHS)}
    return [every[key] for key in sorted(every, key=lambda key: (key[0], order.get(key[1], 0))) if key[1] in order]


def results(machine: dict[str, str], lines: list[dict[str, Any]]) -> str:
    """Return what FILE holds: a line a run, with its headline and without the other findings."""
    kept = ({key: value for key, value in line.items() if key != "findings"} for line in lines)
    runs = ",\n".join(json.dumps(line, ensure_ascii=False) for line in kept)
    return f'{json.dumps(machine)[:-1]}, "runs": [\n{runs}\n]}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/verdicts"), metavar="FOLDER")
    parser.add_argument("--only", nargs="*", default=[], metavar="TEXT", help="truths whose names hold one of these")
    parser.add_argument("--most", type=int, metavar="N", help="seeds of a truth, at most")
    parser.add_argument("--fresh", action="store_true", help=f"seeds from {FRESH} on")
    parser.add_argument("--audit", action="store_true", help="audit the data of runs that are there again")
    parser.add_argument("--kept", action="store_true", help="judge runs that are there, and train none")
    parser.add_argument("--follow", action="store_true", help="do what verdicts on faults advise, and train again")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    arguments = parser.parse_args()

    lines = []
    asked = [one for one in TRUTHS if not arguments.only or any(text in one.name for text in arguments.only)]
    if not asked:
        parser.error(
            f"no truth's name holds {' or '.join(arguments.only)}; truths: {', '.join(x.name for x in TRUTHS)}"
        )
    first = FRESH if arguments.fresh else 0
    for number in range(arguments.most or max(truth.seeds for truth in asked)):  # every truth has its first early
        for truth in (one for one in asked if number < one.seeds):
            seed = first + number
            folder = arguments.runs / f"{truth.name}-{seed}".replace(" ", "-").replace(":", "").replace("%", "pct")
            if arguments.kept and not (folder / "seconds.json").is_file():
                continue
            lines.append(measure(truth, seed, folder, audit=arguments.audit))
            if arguments.follow and not truth.name.startswith("sound") and "refused" not in lines[-1]:
                lines[-1]["steps"] = follow(truth, seed, folder)
                lines[-1]["followed"] = followed(lines[-1]["steps"])
            print(f"{truth.name}, seed {seed}: {lines[-1]['outcome']} {lines[-1].get('followed', '')}", flush=True)
    machine = {"date": time.strftime("%Y-%m-%d"), "machine": platform.processor() or platform.machine()}
    lines = json.loads(json.dumps(lines).replace(f"{arguments.runs}/", ""))
    before = json.loads(arguments.out.read_text())["runs"] if arguments.out.is_file() else []
    lines = merged(before, lines)
    arguments.out.write_text(results(machine, lines))
    print(table(lines))


if __name__ == "__main__":
    main()
