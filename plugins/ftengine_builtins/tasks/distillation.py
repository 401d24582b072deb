"""On-policy distillation: a model learns a teacher's distributions along its own answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
from pydantic import Field, model_validator

from ftengine.api import Batch, DrawRequest, Draws, Example, Features, LoadedModel, Prediction, Recognised
from ftengine.chat import has_template, stop_tokens
from ftengine.errors import DataError, RecipeError, naming
from ftengine.generation import draw_answers, made_to_fit
from ftengine.model import IGNORED, stack_tokens
from ftengine_builtins.tasks import language_rows
from ftengine_builtins.tasks.answers_prompts import AnswersPrompts, PromptOptions
from ftengine_builtins.tasks.causal_lm import CausalLM
from ftengine_builtins.tasks.divergences import TaughtBy
from ftengine_builtins.tasks.drawn_answers import DrawnAnswer
from ftengine_builtins.tasks.generative import CausalLMOptions, LanguageTask
from ftengine_builtins.tasks.language_rows import Asked
from ftengine_builtins.tasks.prompt_rows import own_answer, without_answer
from ftengine_builtins.tasks.recognising import first_of, renamed
from ftengine_builtins.tasks.teachers import Teacher, TeacherSource

if TYPE_CHECKING:
    from torch import Tensor, nn

SAMPLED = "sampled_logps"
"""The key of a batch for log-probabilities of tokens by whatever drew them."""
TOGETHER = 16
"""Answers whose divergence is measured at one time."""
SAME = 1e-3
"""Divergence a token, in nats, below which a teacher has nothing to teach."""


class DistillationConfig(PromptOptions):
    """Options of task distillation."""

    teacher: str | None = Field(
        None, description="folder of a model or of a run, or what else model.source may be; null: the base itself"
    )
    teacher_system_prompt: str | None = Field(
        None, min_length=1, description="system message that the teacher gets, in place of a prompt's own"
    )
    beta: float = Field(
        1.0,
        ge=0,
        le=1,
        description="divergence: 0 is KL(teacher‖student), 1 is KL(student‖teacher), between is Jensen-Shannon's",
    )
    lmbda: float = Field(
        1.0, ge=0, le=1, description="share of prompts that the model answers; the others keep their rows' answers"
    )
    num_generations: int = Field(1, ge=1, description="answers that are drawn for each prompt of a step")
    temperature: float = Field(1.0, gt=0, description="of drawing, and of both models' probabilities in the loss")

    @model_validator(mode="after")
    def _taught(self) -> DistillationConfig:
        if self.teacher is None and self.teacher_system_prompt is None:
            raise ValueError(
                "there is nothing to learn from. Set teacher (another model, or a run), teacher_system_prompt (the "
                "base with a longer prompt), or both"
            )
        return self


@dataclass(frozen=True)
class TaughtAnswer(DrawnAnswer):
    """An answer that a teacher reads, too.

    Args:
        taught: the teacher's prompt, tokens.
        is_own: whether it is the row's, and not drawn.
    """

    taught: list[int] = field(default_factory=list)
    is_own: bool = False

    @classmethod
    def of(cls, drawn: DrawnAnswer, taught: list[int]) -> TaughtAnswer:
        return cls(**{each.name: getattr(drawn, each.name) for each in fields(DrawnAnswer)}, taught=taught)

    def example(self) -> Features:
        """Return it as features for `collate`."""
        inputs = inputs_of(self.prompt, self.taught, self.ids)
        inputs[SAMPLED] = [0.0] * len(self.prompt) + (self.sampled or [0.0] * len(self.ids))
        return Features(inputs, len(inputs["input_ids"]), float(len(self.ids)), not self.ended)

    def line(self) -> dict[str, Any]:
        """Return its line of draws.jsonl."""
        figures = {"tokens": len(self.ids), "ended": self.ended, "own": not self.is_own}
        return {"prompt": self.asked, "answer": self.text, **figures}


def inputs_of(prompt: Sequence[int], taught: Sequence[int], ids: Sequence[int]) -> dict[str, Any]:
    """Return the inputs of an answer: tokens and labels for the student, and the teacher's prompt."""
    labels = [IGNORED] * len(prompt) + list(ids)
    return {"input_ids": [*prompt, *ids], "labels": labels, "taught": list(taught)}


class Distillation(AnswersPrompts):
    """Learn a teacher's distributions along the model's own answers (on-policy distillation, GKD).

    The teacher is another model with the same vocabulary, a finished run, or the base itself with a longer system
    prompt, whose effect then goes into the weights. Rows are those of task grpo; their own answers are needed for
    `lmbda` below 1, and for evaluator perplexity. The loss is a mean over tokens of the generalised Jensen-Shannon
    divergence over the whole vocabulary.
    """

    name = "distillation"
    paper = "Agarwal et al. 2023, arXiv:2306.13649"
    Config = DistillationConfig
    evaluators = ("teacher-divergence",)
    predicts = frozenset({"loss", "tokens"})
    generates = LanguageTask.generates | {"teacher_kl", "teacher_tokens"}

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        own = self.config
        self._answered = CausalLM(self._language.config.model_copy(update={"train_on": "last"}))
        self._source = None if own.teacher is None else TeacherSource(own.teacher)
        self._base: Teacher | None = None
        self.token_figures = ("teacher_kl", "entropy", *(["sampler_gap"] if own.lmbda == 1 else []))
        asked = {"max_new_tokens": own.max_new_tokens, "temperature": own.temperature}
        self.evaluator_options = {"teacher-divergence": asked}

    # The teacher.

    def set_model(self, loaded: LoadedModel, strategy: Any) -> None:
        """Receive the student, whose base is the teacher where none is named (RecipeError: they do not fit)."""
        self._require_place(loaded.processor)
        if self._source is not None and self._source.is_of(loaded):
            if self.config.teacher_system_prompt is None:
                raise RecipeError(
                    f"task.teacher is the model that is trained, {loaded.source!r}, with the same prompt, so there is "
                    "nothing to learn. Name another teacher, or set task.teacher_system_prompt."
                )
            self._source = None
        if self._source is not None:
            self._source.require_fit(loaded)
        elif not next(loaded.module.parameters()).is_meta:
            if strategy is None or self._base is None:
                self._base = Teacher.of_base(loaded)
            if strategy is not None:
                self._base.keep_trained()

    def _require_place(self, processor: Any) -> None:
        """Raise an error where a system message has no place in the model's prompts."""
        if self.config.teacher_system_prompt is None:
            return
        if self.config.chat_template == "never" or not has_template(processor):
            why = "task.chat_template is never" if has_template(processor) else "the model has no chat template"
            raise RecipeError(
                f"task.teacher_system_prompt is set, but {why}, so a system message has no place. Take a model that "
                "was tuned for chat, or name another model as task.teacher."
            )
        with naming("task.teacher_system_prompt"):
            self._taught({"prompt": "?"}, processor)

    @property
    def _teacher(self) -> Teacher:
        if self._source is not None:
            return self._source.teacher
        assert self._base is not None, "set_model was not called"
        return self._base

    def start_scoring(self) -> None:
        """Load the teacher, unless it is the base."""
        if self._source is not None:
            _ = self._source.teacher

    # Rows.

    @classmethod
    def recognise(cls, columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
        """Take prompts, with or without answers, where the user names the task."""
        guess = language_rows.recognise(columns, rows)
        options = {"teacher_system_prompt": "Answer in one short sentence."}
        if guess is not None and "text" not in (guess.columns or columns):
            return replace(guess, certainty=0, options=options)
        prompt = first_of(["prompt", "question", "instruction", "query"], columns)
        return None if prompt is None else Recognised(0, renamed(prompt=prompt), options)

    def _taught(self, row: Example, processor: Any) -> list[int]:
        """Return the teacher's prompt, as tokens of the student's tokenizer."""
        row, system = without_answer(row), self.config.teacher_system_prompt
        if system is not None:
            key = "messages" if row.get("messages") is not None else "prompt"
            value = row[key]
            messages = [{"role": "user", "content": value}] if isinstance(value, str) else list(value)
            others = [each for each in messages if each.get("role") not in ("system", "developer")]
            row = {**row, key: [{"role": "system", "content": system}, *others]}
        return self._language.asked(row, processor, anew=True).ids

    def encode(self, example_row: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return the prompt with an answer as long as may be drawn, and the row's own answer where it has one.

        DataError: that is longer than a model reads, or the row has no answer and task.lmbda is below 1.
        """
        features = super().encode(example_row, processor, max_length=max_length)
        taught, most = self._taught(example_row, processor), self.config.max_new_tokens
        limit = max_length if self._source is None else self._source.max_length
        if limit is not None and len(taught) + most > limit:
            raise DataError(
                f"the teacher's prompt has {len(taught):,} tokens, and with answers of up to {most:,} "
                f"(task.max_new_tokens) that is more than the {limit:,} that the teacher reads. Shorten it, or lower "
                "task.max_new_tokens."
            )
        has_answer = bool(own_answer(example_row))
        if self.config.lmbda < 1 and not has_answer:
            raise DataError(
                f"the row has no answer of its own, and task.lmbda {self.config.lmbda:g} takes a share of answers "
                "from rows. Give each row a `completion`, or set task.lmbda to 1."
            )
        answered = self._answered.encode(example_row, processor).inputs if has_answer else {}
        own = {key: answered[key][:max_length] for key in ("input_ids", "labels") if answered}
        prompt = features.inputs["input_ids"][:-most]
        # Of one token repeated, both models would be sure, and the divergence mostly rounding.
        filler = (prompt * (most // len(prompt) + 1))[:most]
        features.inputs = {**inputs_of(prompt, taught, filler), "own": own}
        return features

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Stack tokens and labels of student (n, T) and teacher (n, T'), whose prompt may be longer."""
        import torch

        inputs = [one.inputs for one in features]
        batch = stack_tokens([{key: one[key] for key in ("input_ids", "labels")} for one in inputs], processor)
        answers = [[label for label in one["labels"] if label != IGNORED] for one in inputs]
        taught = [inputs_of(one["taught"], [], ids) for one, ids in zip(inputs, answers, strict=True)]
        stacked = stack_tokens(taught, processor)
        # Not named input_ids: fast paths would take them for another input of the same model.
        names = {"taught_ids": "input_ids", "taught_mask": "attention_mask", "taught_labels": "labels"}
        batch |= {name: stacked[key] for name, key in names.items()}
        if SAMPLED in inputs[0]:
            batch[SAMPLED] = torch.zeros(batch["labels"].shape)
            for row, one in zip(batch[SAMPLED], inputs, strict=True):
                row[: len(one[SAMPLED])] = torch.tensor(one[SAMPLED])
        if "own" in inputs[0]:
            none = {"input_ids": [processor.eos_token_id or 0], "labels": [IGNORED]}
            own = stack_tokens([one["own"] or none for one in inputs], processor)
            names = {"own_ids": "input_ids", "own_mask": "attention_mask", "own_labels": "labels"}
            batch |= {name: own[key] for name, key in names.items()}
        return batch

    # A step.

    def draw(self, request: DrawRequest) -> list[list[TaughtAnswer]]:
        """Return drawn answers to each row, or the row's own, as a coin of seed, step and prompt decides."""
        processor = request.loaded.processor
        taught = [self._taught(row, processor) for row in request.rows]
        draws = [self._draws(request, ids) for ids in taught]
        rows = [row for row, drawing in zip(request.rows, draws, strict=True) if drawing]
        drawn = iter(self.drawn(replace(request, rows=rows)) if rows else [])
        return [
            [TaughtAnswer.of(next(drawn), ids) for _ in range(self.config.num_generations)]
            if drawing
            else [self._own(row, ids, processor)]
            for row, ids, drawing in zip(request.rows, taught, draws, strict=True)
        ]

    def _draws(self, request: DrawRequest, prompt: Sequence[int]) -> bool:
        key = [request.seed, request.step, crc32(np.array(prompt, dtype=np.int64).tobytes())]
        coin = np.random.SeedSequence(key).generate_state(1)[0] / 2**32
        return bool(coin < self.config.lmbda)

    def _own(self, row: Example, taught: list[int], processor: Any) -> TaughtAnswer:
        """Return a row's own answer, cut where a drawn one would be."""
        asked, most = self._asked(row, processor), self.config.max_new_tokens
        labels = self._answered.encode(row, processor).inputs["labels"]
        ids = [label for label in labels if label != IGNORED]
        text = own_answer(row)["completion"]
        return TaughtAnswer(asked.ids, asked.prompt, ids[:most], text, len(ids) <= most, taught=taught, is_own=True)

    def score(self, rows: Sequence[Example], drawn: Sequence[list[TaughtAnswer]]) -> Sequence[list[TaughtAnswer]]:
        """Return the answers: their tokens are scored where they are learnt from."""
        return drawn

    def learn_from(self, scored: Sequence[list[TaughtAnswer]]) -> Draws:
        """Return all answers, and figures of those that were drawn."""
        answers = [one for group in scored for one in group]
        drawn = [one for one in answers if not one.is_own]
        figures: dict[str, float] = {"answers": len(drawn)}
        if drawn:
            figures["answer_tokens"] = sum(len(one.ids) for one in drawn) / len(drawn)
            figures["cut_off"] = sum(not one.ended for one in drawn) / len(drawn)
        return Draws([one.example() for one in answers], 0.0, figures, [one.line() for one in answers])

    def measure(self, request: DrawRequest) -> list[float]:
        """Return less the divergence from the teacher, per token, of the likeliest answer to each row."""
        taught = [self._taught(row, request.loaded.processor) for row in request.rows]
        drawn = zip(self.drawn(request, likeliest=True), taught, strict=True)
        return [
            -total / count for total, count in self.divergences(request.loaded, [TaughtAnswer.of(*x) for x in drawn])
        ]

    def learn(self, model: nn.Module, batch: Batch) -> tuple[Tensor, float, list[Tensor], int]:
        """Return (sum of divergences, number of tokens, sums of figures, number of tokens)."""
        import torch

        criterion = self._criterion(model, batch, self.config.beta)
        total, count = self._loss.sum(model, _student(batch), batch["labels"], criterion)
        empty = [total.detach().new_zeros(0)]
        sums = {"teacher_kl": torch.cat(criterion.kl or empty), "entropy": torch.cat(criterion.entropies or empty)}
        logps = torch.cat(criterion.logps or empty)
        trained = batch["labels"][:, self.ahead :] != IGNORED
        sampled = batch[SAMPLED][:, self.ahead :][trained] if SAMPLED in batch else logps
        sums["sampler_gap"] = (sampled - logps).abs()
        return total, float(count), [sums[name].sum() for name in self.token_figures], count

    def _criterion(self, model: nn.Module, batch: Batch, beta: float) -> TaughtBy:
        """Return the divergence from what the teacher makes of a batch, which it reads before the student does."""
        inputs = {"input_ids": batch["taught_ids"], "attention_mask": batch["taught_mask"]}
        labelled = self._teacher.labelled(model, inputs, batch["taught_labels"])
        return TaughtBy(labelled, beta, self.config.temperature)

    # Answers.

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return the summed loss and number of tokens of each row's own answer; 0 tokens where it has none."""
        inputs = {"input_ids": batch["own_ids"], "attention_mask": batch["own_mask"]}
        losses, tokens = self._loss.by_example(model, inputs, batch["own_labels"])
        return [{"loss": x, "tokens": n} for x, n in zip(losses.tolist(), tokens.tolist(), strict=True)]

    def decode_prediction(self, prediction: Prediction) -> dict[str, Any]:
        return LanguageTask.decode_prediction(self, prediction)

    def generate(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[Prediction]:
        """Return {"prompt", "completion", "reference"} for each row, and how far the model is from the teacher there.

        "teacher_kl" is KL(student‖teacher) in nats, summed over the "teacher_tokens" of the answer.
        """
        queries = [self._asked(row, loaded.processor, loaded.max_length) for row in rows]
        config = CausalLMOptions.read(self._options(options))
        prompts, chosen = made_to_fit(loaded, [query.ids for query in queries], config)
        numbers = chosen.numbers(len(queries))
        drawn = draw_answers(loaded, prompts, chosen, stop_tokens(loaded), numbers)
        answers = [
            TaughtAnswer.of(self._answer(query, answer, loaded.processor), self._taught(row, loaded.processor))
            for query, answer, row in zip(queries, drawn, rows, strict=True)
        ]
        measured = self.divergences(loaded, answers)
        return [self._generated(*each) for each in zip(queries, answers, measured, strict=True)]

    @staticmethod
    def _generated(query: Asked, answer: TaughtAnswer, measured: tuple[float, int]) -> Prediction:
        texts = {"prompt": query.prompt, "completion": answer.text, "reference": query.reference}
        return {**texts, "teacher_kl": measured[0], "teacher_tokens": measured[1]}

    def divergences(
        self, loaded: LoadedModel, answers: Sequence[TaughtAnswer], beta: float = 1.0
    ) -> list[tuple[float, int]]:
        """Return the divergence of each answer from the teacher, summed over its tokens, and their number."""
        import torch

        from ftengine.model import evaluating

        module, each = loaded.module, list[tuple[float, int]]()
        device = next(module.parameters()).device
        for start in range(0, len(answers), TOGETHER):
            features = [one.example() for one in answers[start : start + TOGETHER]]
            batch = {key: value.to(device) for key, value in self.collate(features, loaded.processor).items()}
            with torch.no_grad(), evaluating(module):
                criterion = self._criterion(module, batch, beta)
                losses, of = self._loss.each(module, _student(batch), batch["labels"], criterion)
            sums = losses.double().new_zeros(len(features)).index_add(0, of, losses.double())
            each += zip(sums.tolist(), torch.bincount(of, minlength=len(features)).tolist(), strict=True)
        return each

    def advice(self, rows: Sequence[Example], loaded: LoadedModel) -> Iterable[str]:
        """Look for a token that ends answers, and for what the teacher says otherwise than the model."""
        if not stop_tokens(loaded):
            yield (
                "neither model nor tokenizer names a token that ends an answer, so that all are cut off at "
                f"max_new_tokens {self.config.max_new_tokens}"
            )
        if next(loaded.module.parameters()).is_meta:
            return
        asked = {"temperature": self.config.temperature, "seed": 0}
        answers = self.generate(loaded, rows, asked)
        tokens = sum(answer["teacher_tokens"] for answer in answers)
        mean = sum(answer["teacher_kl"] for answer in answers) / max(1, tokens)
        if mean < SAME:
            yield (
                f"the teacher says what the model says already: KL is {mean:.2g} nats a token over {len(rows)} answers "
                "of the model. Name another teacher, or another task.teacher_system_prompt"
            )


def _student(batch: Batch) -> dict[str, Any]:
    return {key: batch[key] for key in ("input_ids", "attention_mask")}
