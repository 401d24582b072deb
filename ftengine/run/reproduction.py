"""What came of training a run again from its own record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ftengine.identity.base import changes
from ftengine.run.comparison import PairDifference
from ftengine.run.records import Environment

Outcome = Literal["equal", "within", "different", "undecided"]


@dataclass(frozen=True)
class Change:
    """What is not as it was: `kind` is what it is of ("data", "base", "versions", …), `text` what it was and is."""

    kind: str
    text: str


@dataclass(frozen=True)
class Reproduction:
    """A run and the one that was trained from its record.

    Args:
        outcome: "equal", weights and answers are the same in every bit; "within", by the first metric, with its
            interval, they are nearer to each other than tuned model and base; "different", by any metric beyond chance;
            "undecided": too few held-out examples to tell.
        output: folder of the new run; None where it was not trained, as data or base are others.
        changes: what is not as it was, in the order of a run: data, base, code, versions, machine, arithmetic.
        first: the kind of the first of them; "" where nothing that is recorded differs.
        same_weights: whether the trained parts hold the same tensors; False where nothing was trained. Where they do
            and the outcome is another than "equal", their answers were measured otherwise.
        step: the first training step whose loss differs; None where none does.
        metric, difference: what was compared on held-out examples, the new run minus the old one; None where equal.
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
"""Of a machine, what may change a result."""


def changes_of_data(then: dict[str, str], now: dict[str, str]) -> list[Change]:
    """Return the splits whose content is another."""
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return [Change("data", f"{name} was {_hash(then.get(name))}, is {_hash(now.get(name))}") for name in names]


def changes_of_environment(then: Environment, now: Environment) -> list[Change]:
    """Return what of a run's surroundings is not as it was, the base first."""
    listed = [Change("base", text) for text in changes(then.base, now.base)]
    listed += _changed("code", {"ftengine": then.versions.get("ftengine")}, {"ftengine": now.versions.get("ftengine")})
    listed += _changed("code", _plugins(then), _plugins(now))
    if then.code is not None:
        listed += _changed("code", *({name: _hash(x) for name, x in (one.code or {}).items()} for one in (then, now)))
    listed += _changed("code", {"kernels": then.build.get("line")}, {"kernels": now.build.get("line")})
    listed += _changed("versions", *({k: v for k, v in one.versions.items() if k != "ftengine"} for one in (then, now)))
    listed += _changed("device", *({"device": one.device, "processes": one.processes} for one in (then, now)))
    listed += _changed("hardware", *({key: one.hardware.get(key) for key in HARDWARE} for one in (then, now)))
    return listed + _changed("arithmetic", _arithmetic(then), _arithmetic(now))


def _plugins(one: Environment) -> dict[str, Any]:
    return {plugin["distribution"]: plugin["version"] for plugin in one.plugins if plugin["status"] == "loaded"}


def _arithmetic(one: Environment) -> dict[str, Any]:
    """Return how a run computed."""
    return {
        "precision": one.precision.compute,
        "frozen weights": one.precision.frozen_weights,
        "gradient checkpointing": one.memory and one.memory.gradient_checkpointing,
        "fast paths": ", ".join(name for name, use in one.fast_paths.items() if use.active),
        **{f"strategy's {key}": value for key, value in one.strategy.items()},
    }


def _changed(kind: str, then: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return [Change(kind, f"{name} was {_shown(then.get(name))}, is {_shown(now.get(name))}") for name in names]


def _shown(value: Any) -> str:
    return "not there" if value is None or value == "" else str(value)


def _hash(value: str | None) -> str:
    return "not there" if value is None else f"{value[:12]}…"
