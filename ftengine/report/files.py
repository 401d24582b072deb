"""What a finished run wrote, read once; whatever an older version did not write is empty."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ftengine.errors import RunError
from ftengine.run.directory import SIDECAR, RunDirectory, read_json

NEEDED = ("audit.json", "environment.json", "metrics.jsonl", "training.json", "evaluation.json")
"""Files that every finished run has, beside recipe.yaml and the trained part."""

KNOWN_DIRECTIONS = {
    **dict.fromkeys(
        ("accuracy", "subset_accuracy", "macro_f1", "micro_f1", "f1", "precision", "recall", "r2", "exact_match"), True
    ),
    **dict.fromkeys(("perplexity", "loss", "mae", "mse", "rmse", "ece", "brier"), False),
}
"""Whether more is better, for runs made before evaluation.json said so itself."""


@dataclass
class RunFiles:
    """The files of one finished run, as JSON values.

    Args:
        path: the run's folder.
        recipe: recipe.yaml.
        environment, audit, training, evaluation: the JSON files of these names.
        metrics: metrics.jsonl, a mapping a line.
        examples: examples.json; {} where there is none.
        facts: adapter/ftengine.json.
    """

    path: Path
    recipe: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    examples: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> RunFiles:
        """Read a run's folder.

        Raises:
            RunError: it holds no run, or no finished one; the message says what is missing.
        """
        run = RunDirectory(path)
        run.require_run()
        missing = [name for name in NEEDED if not (run.path / name).is_file()]
        if not (run.trained / SIDECAR).is_file():
            missing.append(f"{run.trained.name}/")
        if missing:
            raise RunError(
                f"run {str(run.path)!r} is not finished: it has no {', '.join(missing)}. "
                "Continue it with `ftengine train RECIPE --resume`."
            )
        try:
            recipe = yaml.safe_load((run.path / "recipe.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise RunError(f"{str(run.path / 'recipe.yaml')!r} cannot be read: {error}.") from None
        examples = run.read_json("examples.json") if (run.path / "examples.json").is_file() else {}
        content = {
            "recipe": recipe,
            **{name: run.read_json(f"{name}.json") for name in ("environment", "audit", "training", "evaluation")},
            "examples": examples,
            "facts": read_json(run.trained / SIDECAR),
        }
        for name, value in content.items():
            if not isinstance(value, dict):
                raise RunError(f"{str(run.path)!r}: its {name} is no mapping, so this is no run of ftengine.")
        return cls(run.path, metrics=run.metrics(), **content)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl that are training steps, in order."""
        return [line for line in self.metrics if line.get("loss") is not None]

    @property
    def validations(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl that are validations, in order."""
        return [line for line in self.metrics if line.get("validation_loss") is not None]

    @property
    def kept_step(self) -> int:
        """The step whose weights the run kept."""
        best = self.training.get("best_step")
        if best is not None and self.recipe.get("train", {}).get("keep_best", True):
            return best
        return self.training.get("steps", 0)

    @property
    def headline_metric(self) -> str | None:
        """The first metric of the task; None without held-out figures."""
        return next(iter(self.evaluation.get("tuned", {})), None)

    def higher_is_better(self, metric: str, difference: dict[str, Any] | None = None) -> bool | None:
        """Say whether more of a metric is better; None where nothing tells."""
        said = self.evaluation.get("metrics", {}).get(metric, {}).get("higher_is_better")
        if said is not None:
            return bool(said)
        difference = difference or self.evaluation.get("difference", {}).get(metric) or {}
        if difference.get("better") is not None and difference.get("value"):
            return (difference["value"] > 0) == difference["better"]
        return KNOWN_DIRECTIONS.get(metric)
