"""`ftengine doctor`: check this installation and print its versions, hardware and plugins."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import click

from ftengine.cli.options import json_option
from ftengine.cli.page import facts, page, print_json
from ftengine.cli.plugin_cache import cached_fact, store_facts
from ftengine.errors import PluginError, RunError
from ftengine.text import counted, size

Check = Callable[[list[str]], Any]
"""Returns facts as JSON values, and appends problems, with what to do, to its argument."""


@click.command()
@click.option(
    "--clear-cache",
    is_flag=True,
    help="Empty the cache (parsed data, encoded rows, base predictions); it is rebuilt when needed.",
)
@click.option(
    "--recheck",
    is_flag=True,
    help="Repeat checks that passed before, although installation, settings and machine are unchanged.",
)
@json_option
def doctor(clear_cache: bool, recheck: bool, as_json: bool) -> None:
    """Check this installation and say what to repair.

    Exits with 1 if there is something to repair. A check that passed is not repeated until the installation, the
    settings or the machine change.

    \b
    Examples:
      ftengine doctor --json
      ftengine doctor --clear-cache
    """
    if clear_cache:
        _clear_cache()
    report, problems = examine(recheck=recheck)
    if as_json:
        print_json({**report, "problems": problems})
    else:
        _show(report, problems)
    if problems:
        sys.exit(1)


def examine(*, recheck: bool = True) -> tuple[dict[str, Any], list[str]]:
    """Run every check and return facts and problems; a check that fails is a problem, and the others still run.

    Args:
        recheck: also repeat checks that passed before on this machine.
    """
    began, here = time.time_ns(), _machine()
    stored = None if recheck else cached_fact("doctor")
    report: dict[str, Any] = {}
    problems: list[str] = []
    sound = stored["found"] if stored and stored["machine"] == here else {}
    for name, check in CHECKS.items():
        if name in sound:
            report[name] = sound[name]
            continue
        try:
            report[name] = check(problems)
        # A broken installation may raise anything, even when it is imported; this command reports it.
        except Exception as error:
            report[name] = None
            problems.append(f"{name} could not be checked: {type(error).__name__}: {error}")
    if not (problems or sound):
        store_facts({"doctor": {"machine": here, "found": {name: report[name] for name in LASTING}}}, began)
    return report, problems


def _machine() -> list[str]:
    """Return what hardware, precision and kernels depend on: last boot, cores, GPUs, compiled files.

    Drivers and devices hardly ever change without a restart of the machine.
    """
    started = Path("/proc/sys/kernel/random/boot_id")
    compiled = sorted(Path(__file__).parents[1].rglob("*.so"))
    written = [f"{file} {file.stat().st_mtime_ns}" for file in compiled]
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = sorted(map(str, Path("/dev").glob("nvidia*")))
    return [started.read_text().strip() if started.exists() else "", str(cores), *devices, *written]


def _fact(place: str) -> Check:
    """Return a check that calls `module:function` and reports no problems."""
    return lambda problems: resolve_name(place)()


def _requirements(problems: list[str]) -> dict[str, str]:
    """Compare the installed versions with ftengine's requirements."""
    from packaging.requirements import Requirement

    versions = {}
    for requirement in map(Requirement, metadata.requires("ftengine") or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = "missing"
        versions[requirement.name] = version
        if version == "missing" or not requirement.specifier.contains(version, prereleases=True):
            repair = f"Repair with: pip install '{requirement}'"
            problems.append(f"{requirement.name} is {version}; ftengine needs {requirement}. {repair}")
    return versions


def _precision(problems: list[str]) -> dict[str, str]:
    """Return the precision that `auto` chooses here, and why."""
    from accelerate.state import PartialState

    from ftengine.parallel.precision import choose_precision

    device = PartialState().device
    precision = choose_precision("auto", "auto", device)
    return {"device": str(device), "compute": precision.name, "reason": precision.reason}


def _kernels(problems: list[str]) -> dict[str, dict[str, str]]:
    """Return which kernels run low-rank layers on each device, as the default strategy reports it."""
    from ftengine.cli.components import installed

    everything = installed()
    usual = next((e.cls for e in everything.entries if e.kind == "strategy" and e.cls.traits.is_default), None)
    if usual is None:
        raise PluginError(" ".join(everything.problems) or "no strategy is installed.")
    return {device: by for devices in usual().environment().values() for device, by in devices.items()}


def _plugins(problems: list[str]) -> list[dict[str, str]]:
    from ftengine.cli.components import installed
    from ftengine.run.environment import plugin_origins

    everything = installed()
    problems += everything.problems
    problems += [remark for origin in everything.plugins.origins.values() for remark in origin.remarks]
    return plugin_origins(everything.plugins)


def _commands(problems: list[str]) -> list[dict[str, str]]:
    """Import the commands of plugins, as a call of them would."""
    from ftengine.cli import main

    commands = []
    with click.Context(main, info_name="ftengine") as ctx:
        for name, offers in sorted(main.external.items()):
            try:
                main.get_command(ctx, name)
            except PluginError as error:
                problems.append(str(error))
            commands += [{"name": name, "distribution": o.distribution, "version": o.version} for o in offers]
    return commands


def _clear_cache() -> None:
    from ftengine.identity.cache import clear, usage

    before = usage()
    try:
        clear()
    except OSError as error:
        raise RunError(f"cannot remove the cache {before['folder']}: {error.strerror or error}.") from None
    click.echo(f"removed {size(before['bytes'])} from {before['folder']}", err=True)


CHECKS: dict[str, Check] = {
    "versions": _fact("ftengine.run.environment:versions"),
    "requirements": _requirements,
    "hardware": _fact("ftengine.run.environment:hardware"),
    "precision": _precision,
    "build": _fact("ftengine.run.environment:build"),
    "cache": _fact("ftengine.identity.cache:usage"),
    "plugins": _plugins,  # the first check that imports them: effects of the import show once
    "kernels": _kernels,
    "commands": _commands,
}

LASTING = ("hardware", "precision", "build", "plugins", "kernels", "commands")
"""Checks that import torch or plugins, and whose results change only with the installation or the machine."""


SERVES = {"compiled": "low-rank layers run on compiled kernels", "reference": "low-rank layers run on plain PyTorch"}


def _show(report: dict[str, Any], problems: list[str]) -> None:
    out = page()
    out.print(facts(_lines(report)))
    if problems:
        out.print("", facts(("problem", problem) for problem in problems))
    else:
        out.print("\nno problems found")


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a line for each fact; a failed check has none, as its problem is printed."""
    lines = []
    if report["versions"]:
        versions = [f"{name} {version}" for name, version in report["versions"].items() if version]
        lines.append(("versions", ", ".join(versions)))
    if report["hardware"]:
        machine = report["hardware"]
        torch = f"torch uses {counted(machine['threads'], 'thread')} and {machine['cpu_capability']}"
        gpus = [f"{g['name']}, {size(g['memory_bytes'])}, capability {g['capability']}" for g in machine["gpus"]]
        lines += [
            ("machine", machine["platform"]),
            ("processor", f"{machine['processor']}: {machine['cores']} cores, {torch}"),
            ("memory", size(machine["memory_bytes"])),
            *(("GPU", gpu) for gpu in gpus or ["none"]),
        ]
    if report["precision"]:
        precision = report["precision"]
        lines.append(("precision", f"auto is {precision['compute']} on {precision['device']}: {precision['reason']}"))
    if report["build"]:
        lines.append(("build", report["build"]["line"]))
    for device, kernels in (report["kernels"] or {}).items():
        lines.append((f"on {device}", f"{SERVES[kernels['backend']]}: {kernels['reason']}"))
    if report["cache"]:
        cache = report["cache"]
        held = f"{size(cache['bytes'])} of at most {size(cache['limit'])}"
        lines.append(("cache", f"{counted(cache['entries'], 'entry', 'entries')}, {held}, in {cache['folder']}"))
    for plugin in report["plugins"] or ():
        origin = f"{plugin['distribution']} {plugin['version']}"
        lines.append(("plugin", f"{plugin['name']} of {origin}: {plugin['status']}"))
    for command in report["commands"] or ():
        lines.append(("command", f"{command['name']} of {command['distribution']} {command['version']}"))
    return lines
