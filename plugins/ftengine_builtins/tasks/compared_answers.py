"""The common part of tasks that learn which answers are better: tokens of answers, and options of losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from inspect import isfunction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationError

from ftengine.api import Config, Example, Features, LoadedModel, Prediction, Prompt, ReferenceTask, TaskTraits
from ftengine.errors import PluginError, RecipeError, did_you_mean
from ftengine.model import IGNORED
from ftengine_builtins.tasks.causal_lm import DEFAULT_MAX_LENGTH, CausalLM, CausalLMConfig
from ftengine_builtins.tasks.generative import LanguageTask

if TYPE_CHECKING:
    from torch import Tensor

WHOLE = 1 << 40
"""Tokens that no text has: what is written is cut here, all answers to a prompt alike."""
LANGUAGE = ("thoughts", "chat_template", "chat_template_kwargs", "system")
"""Options that are passed to task causal-lm."""
DIVERGENCE = "divergence"
"""The key of `predict` for how far answers' log-probabilities are from the reference's, per token; what measures it."""


class LanguageOptions(Config):
    """How a conversation is written."""

    thoughts: Literal["train", "mask", "remove"] = Field(
        "train", description="the assistant's thoughts: train on them, mask them in the loss, or remove them"
    )
    chat_template: Literal["auto", "never"] = Field(
        "auto", description="auto writes prompt and answers as a chat where the model has a template; never: as text"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="arguments for the chat template, as {enable_thinking: false}; a row's own take precedence"
    )
    system: str | None = Field(None, min_length=1, description="system message for prompts without one")


class AnswerOptions(LanguageOptions):
    """How a prompt with an answer is written."""

    max_length: int | None = Field(
        None,
        ge=4,
        description="longest prompt with its answer in tokens; null: "
        f"{DEFAULT_MAX_LENGTH}, or the model's limit if less",
    )


def require_each(loss: Any, losses: Tensor, number: int) -> Tensor:
    """Return the losses (PluginError: their number is not that of the pairs or answers)."""
    if losses.shape != (number,):
        cls = type(loss)
        raise PluginError(
            f"loss {cls.name!r} ({cls.__module__}.{cls.__qualname__}) returned a tensor of shape "
            f"{tuple(losses.shape)} for {number}; it must return one loss each, ({number},); the engine sums them."
        )
    return losses


def chosen_loss(losses: Sequence[type[Any]], config: Config, elsewhere: Callable[[str], str]) -> Any:
    """Return the loss that `config.loss` names (None: the first), with its options.

    Args:
        losses: the allowed losses. Their fields are options if the config has fields of these names; None there keeps
            the loss's default.
        elsewhere: returns advice on a name that is not one of these losses.

    Raises:
        RecipeError: there is no such loss, or it does not have an option that is set, or refuses its value.
    """
    names, options = {cls.name: cls for cls in losses}, dict[str, Any]()
    name = getattr(config, "loss", None) or next(iter(names))
    if name not in names:
        raise RecipeError(f"task.loss is {name!r}. Allowed: {', '.join(names)}.{elsewhere(name)}")
    cls, fields = names[name], {field for loss in losses for field in loss.model_fields}
    for key in sorted(fields & set(type(config).model_fields)):
        if (value := getattr(config, key)) is None:
            continue
        if not _reads(cls, key):
            readers = [loss.name for loss in losses if _reads(loss, key)]
            raise RecipeError(
                f"task.{key} is {value!r}, but loss {name} does not use it; {' and '.join(readers)} "
                f"{'do' if len(readers) > 1 else 'does'}. Leave it out."
            )
        options[key] = value
    try:
        return cls(**options)
    except ValidationError as error:
        problem = error.errors()[0]
        raise RecipeError(
            f"task.{problem['loc'][0]} is {problem['input']!r}, but loss {name}: {problem['msg']}."
        ) from None


def _reads(loss: type[Any], key: str) -> bool:
    return key in loss.model_fields and key not in getattr(loss, "unread", ())


def require_sound(loss: type[Any], task: type[Any]) -> None:
    """Refuse a loss with a misspelt method of its base class, or with an option that no recipe can set."""
    own = {name for cls in loss.__mro__ for name, value in vars(cls).items() if isfunction(value) and name[0] != "_"}
    base = next(cls for cls in loss.__mro__[::-1] if {"loss", "token_losses"} & vars(cls).keys())
    alike = [name for name in vars(base) if isfunction(vars(base)[name]) and name[0] != "_"]
    where = f"loss {loss.name!r} ({loss.__module__}.{loss.__qualname__})"
    for name in sorted(own - set(dir(base))):
        if hint := did_you_mean(name, alike):
            raise PluginError(f"{where}: its method {name!r} is never called.{hint} Else begin it with an underscore.")
    if unset := sorted(set(loss.model_fields) - set(task.Config.model_fields)):
        raise PluginError(
            f"{where}: no recipe can set {' and '.join(map(repr, unset))}. Give task {task.name!r} a Config that is "
            f"derived from {task.Config.__name__} and has `{unset[0]}: float | None = None`."
        )


class ComparesAnswers(ReferenceTask, LanguageTask):
    """Base class of tasks whose loss compares the likelihoods of answers to a prompt."""

    traits = TaskTraits(
        example_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        most_epochs=3,
        learning_rate_share=0.02,
        strategy_defaults=(("dropout", 0.0),),
        pipeline_tag="text-generation",
    )
    head = "causal-lm"
    ahead = 1
    predicts_probabilities = False
    losses: ClassVar[tuple[type[Any], ...]]
    """Those that `task.loss` may name, with a `name` and `reference`; the first is the default."""
    compared: ClassVar[frozenset[str]]
    """Keys of `predict` whose values of the reference a loss takes."""
    require_falling: ClassVar[Callable[[Any], None]]
    """Refuses a loss that makes better answers less likely (PluginError)."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        for loss in self.losses:
            require_sound(loss, type(self))
        own = {key: getattr(self.config, key) for key in LANGUAGE}
        self._language = CausalLM(CausalLMConfig(max_length=WHOLE, **own))
        self.preference_loss = chosen_loss(self.losses, self.config, self._elsewhere)
        self.reference = self.compared if self.preference_loss.reference else frozenset()
        if self.reference:
            self.predicts, self.evaluators = self.predicts | {DIVERGENCE}, (*self.evaluators, DIVERGENCE)

    @cached_property
    def sound_loss(self) -> Any:
        """The loss, tested before the first batch (PluginError: better answers getting likelier do not lower it)."""
        self.require_falling(self.preference_loss)
        return self.preference_loss

    def _elsewhere(self, name: str) -> str:
        """Return advice on a loss that is not one of these."""
        return did_you_mean(name, [loss.name for loss in self.losses])

    def for_reference(self) -> ComparesAnswers:
        """Return the task with any reference loss in its defaults, as the reference's log-probabilities are equal."""
        fields = {field for loss in self.losses for field in loss.model_fields}
        plain = dict.fromkeys(fields & set(type(self.config).model_fields))
        first = next(loss.name for loss in self.losses if loss.reference)
        return type(self)(self.config.model_copy(update={**plain, "loss": first}))

    def decode_prediction(self, prediction: Prediction) -> dict[str, Any]:
        return dict(prediction)

    def question(self, row: Example) -> Example:
        """Return a row as a prompt (DataError: it cannot be read)."""
        raise NotImplementedError

    def answered(self, row: Example) -> Example:
        """Return a row as a prompt with its preferred answer (DataError: it cannot be read)."""
        raise NotImplementedError

    def as_read(self, row: Example, processor: Any) -> Example:
        """Return a row of `question` or `answered` in the form that the model reads."""
        return row

    def check_input(self, row: Example) -> None:
        self._language.check_input(self.question(row))

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return {"completion": text} for each row, as task causal-lm does."""
        return self._language.infer(
            loaded, [self.as_read(self.question(row), loaded.processor) for row in rows], options
        )

    def generate(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[Prediction]:
        """Return {"prompt", "completion", "reference"} for each row; the reference is the preferred answer."""
        return self._language.generate(
            loaded, [self.as_read(self.answered(row), loaded.processor) for row in rows], options
        )

    def prompt(self, row: Example, loaded: LoadedModel) -> Prompt:
        return self._language.prompt(self.as_read(self.question(row), loaded.processor), loaded)


def cut_to(
    limit: int, features: Sequence[Features], processor: Any, *, behind: bool = False
) -> tuple[list[dict[str, list[int]]], int, bool]:
    """Cut all answers with their prompt to a number of tokens; the beginning of the prompt is dropped first.

    A BOS in front is kept. With `behind`, text that a template writes after an answer is kept: it does not change the
    answer's probability, but a sequence classifier reads it last.

    Returns:
        tokens and labels of each answer; the length of the longest before cutting; whether an answer was cut.
    """
    inputs = [example.inputs for example in features]
    places = [[i for i, label in enumerate(answer["labels"]) if label != IGNORED] for answer in inputs]
    ends = [len(answer["input_ids"]) if behind else place[-1] + 1 for answer, place in zip(inputs, places, strict=True)]
    full = max(ends)
    bos = getattr(processor, "bos_token_id", None)
    bos_count = int(full > limit and bos is not None and all(answer["input_ids"][0] == bos for answer in inputs))
    room = limit - bos_count
    start = max(bos_count, min(full - room, min(place[0] for place in places) - room // 2))
    sides = [
        {
            "input_ids": answer["input_ids"][:bos_count] + answer["input_ids"][start : min(start + room, end)],
            "labels": [IGNORED] * bos_count + answer["labels"][start : min(start + room, end)],
        }
        for answer, end in zip(inputs, ends, strict=True)
    ]
    return sides, full, full - start > room


def trains(inputs: Mapping[str, Any]) -> bool:
    """Return whether any token is trained on; the first token is never predicted."""
    return any(label != IGNORED for label in inputs["labels"][1:])
