"""The result of training a run again from its record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ftengine.identity.base import changes
from ftengine.run.comparison import PairDifference
from ftengine.run.records import Environment

Outcome = Literal["equal", "within", "different", "undecided"]


@dataclass(frozen=True)
class Change:
    """A change since the run: its `kind` ("data", "base", "versions", …), and the old and new value in `text`."""

    kind: str
    text: str


@dataclass(frozen=True)
class Reproduction:
    """A run, compared with a run that was trained from its record.

    Args:
        outcome: "equal": weights and answers are the same in every bit. "within": by the first metric and its interval,
            the two runs are nearer to each other than tuned model and base. "different": a metric differs beyond
            chance. "undecided": too few held-out examples to tell.
        output: folder of the new run; None if nothing was trained because data or base changed.
        changes: in the order of a run: data, base, code, versions, machine, arithmetic.
        first: the kind of the first change; "" if there is none.
        same_weights: whether the trained parts hold the same tensors; False if nothing was trained. If they do and the
            outcome is not "equal", the answers were judged differently.
        step: the first training step whose loss differs; None if none does.
        metric, difference: the compared metric on held-out examples, new run minus old run; None if equal.
    """

    run: str
    output: str | None
    outcome: Outcome
    changes: tuple[Change, ...] = ()
    step: int | None = None
    metric: str | None = None
    difference: PairDifference | None = None
    same_weights: bool = False

    @property
    def first(self) -> str:
        return self.changes[0].kind if self.changes else ""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "first": self.first}


HARDWARE = ("platform", "processor", "cpu_capability", "threads", "gpus")
"""Facts about a machine that may change a result."""


def changes_of_data(then: dict[str, str], now: dict[str, str]) -> list[Change]:
    """Return a change for each split whose content differs."""
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return [Change("data", f"{name} was {_hash(then.get(name))}, is {_hash(now.get(name))}") for name in names]


def changes_of_environment(then: Environment, now: Environment) -> list[Change]:
    """Return the changes of a run's environment, the base first."""
    listed = [Change("base", text) for text in changes(then.base, now.base)]
    listed += _changed("code", {"ftengine": then.versions.get("ftengine")}, {"ftengine": now.versions.get("ftengine")})
    listed += _changed("code", _plugins(then), _plugins(now))
    if then.code is not None:
        listed += _changed(
            "code", *({name: _hash(x) for name, x in (environment.code or {}).items()} for environment in (then, now))
        )
    listed += _changed("code", {"kernels": then.build.get("line")}, {"kernels": now.build.get("line")})
    listed += _changed(
        "versions", *({k: v for k, v in environment.versions.items() if k != "ftengine"} for environment in (then, now))
    )
    listed += _changed(
        "device", *({"device": environment.device, "processes": environment.processes} for environment in (then, now))
    )
    listed += _changed(
        "hardware", *({key: environment.hardware.get(key) for key in HARDWARE} for environment in (then, now))
    )
    return listed + _changed("arithmetic", _arithmetic(then), _arithmetic(now))


def _plugins(environment: Environment) -> dict[str, Any]:
    return {plugin["distribution"]: plugin["version"] for plugin in environment.plugins if plugin["status"] == "loaded"}


def _arithmetic(environment: Environment) -> dict[str, Any]:
    """Return precision, checkpointing, fast paths and the strategy's facts of a run."""
    return {
        "precision": environment.precision.compute,
        "frozen weights": environment.precision.frozen_weights,
        "gradient checkpointing": environment.memory and environment.memory.gradient_checkpointing,
        "fast paths": ", ".join(name for name, use in environment.fast_paths.items() if use.active),
        **{f"strategy's {key}": value for key, value in environment.strategy.items()},
    }


def _changed(kind: str, then: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return [Change(kind, f"{name} was {_shown(then.get(name))}, is {_shown(now.get(name))}") for name in names]


def _shown(value: Any) -> str:
    return "missing" if value is None or value == "" else str(value)


def _hash(value: str | None) -> str:
    return "missing" if value is None else f"{value[:12]}…"
