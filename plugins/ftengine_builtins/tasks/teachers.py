"""Frozen models whose distributions a student learns."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftengine.api import LoadedModel
from ftengine.errors import RecipeError, naming

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ftengine.api import InferencePath
    from ftengine.model import Labelled

KEY = "task.teacher"
HEAD = "causal-lm"


class Teacher:
    """A frozen language model.

    Args:
        module: the model.
        paths: fast paths of prediction.
        shared: whether its weights are those of a student, whose dtypes they keep.
    """

    def __init__(self, module: nn.Module, paths: Sequence[InferencePath] = (), *, shared: bool = False) -> None:
        from ftengine.model import TokenLoss

        self.module, self._paths, self._shared = module.eval(), paths, shared
        self._loss, self._placed = TokenLoss(1), (None, None)

    @classmethod
    def of_base(cls, loaded: LoadedModel) -> Teacher:
        """Return a base as it is: modules of its own around the same weights, before a strategy changes modules."""
        tensors = (*loaded.module.parameters(), *loaded.module.buffers())
        module = copy.deepcopy(loaded.module, {id(tensor): tensor for tensor in tensors})
        return cls(module, loaded.inference_paths, shared=True)

    def keep_trained(self) -> None:
        """Copy the weights that train from now on; the others stay those of the student."""
        from torch import nn

        copies = dict[int, nn.Parameter]()
        for part in self.module.modules():
            for name, weight in part._parameters.items():
                if weight is not None and weight.requires_grad:
                    if id(weight) not in copies:
                        copies[id(weight)] = nn.Parameter(weight.detach().clone(), requires_grad=False)
                    part._parameters[name] = copies[id(weight)]

    def labelled(self, student: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor) -> Labelled:
        """Return its states at labelled tokens, from which `logits` computes those of a part (`TokenLoss.labelled`).

        Args:
            student: the model beside which it computes, on the same device and, under autocast, in the same dtype.
            inputs: input_ids and attention_mask, (B, T). Ids that only the student has are replaced by its last one.
            labels: (B, T).
        """
        import torch

        self._place(student)
        embedding = self.module.get_input_embeddings()  # type: ignore[operator]
        ids = inputs["input_ids"].clamp(max=len(embedding.weight) - 1)
        with torch.no_grad(), ExitStack() as around:
            for path in self._paths:
                around.enter_context(path.around_prediction(self.module, {**inputs, "input_ids": ids}))
            return self._loss.labelled(self.module, {**inputs, "input_ids": ids}, labels)

    def _place(self, student: nn.Module) -> None:
        import torch

        weight = next(p for p in student.parameters() if p.is_floating_point())
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        if self._placed == (weight.device, dtype):
            return
        for own in () if self._shared else self.module.parameters():
            if own.is_floating_point():
                own.data = own.data.to(dtype)
        self.module.to(weight.device)
        self._placed: tuple[torch.device | None, torch.dtype | None] = (weight.device, dtype)


class TeacherSource:
    """Where a teacher is: the folder of a model or of a run, or what else `model.source` may be.

    Raises:
        InputError: it is none of these, by the key of the recipe.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def is_of(self, loaded: LoadedModel) -> bool:
        """Say whether it is the source of a model."""
        if self.source == loaded.source:
            return True
        paths = Path(self.source).expanduser(), Path(loaded.source).expanduser()
        return all(path.exists() for path in paths) and paths[0].samefile(paths[1])

    @cached_property
    def _answering(self) -> Any:
        from ftengine import load_model

        with naming(KEY):
            return load_model(self.source)

    @cached_property
    def _ready(self) -> Any:
        with naming(KEY):
            return self._answering.ready()

    @cached_property
    def teacher(self) -> Teacher:
        """The model, loaded once."""
        from ftengine.model import seeded

        with naming(KEY), seeded(0):
            loaded = self._answering.open_model()
        return Teacher(loaded.module.requires_grad_(False), loaded.inference_paths)

    @property
    def max_length(self) -> int | None:
        """Longest input in tokens; None where it has no limit or this is not known before it is loaded."""
        return None if self._ready.skeleton is None else self._ready.skeleton.loaded.max_length

    def require_fit(self, loaded: LoadedModel) -> None:
        """Raise RecipeError where a student cannot learn from it; reads no weights."""
        head = self._ready.task.head
        if head != HEAD:
            raise RecipeError(
                f"{KEY} is {self.source!r}, whose task {self._ready.task.name!r} has the head {head!r}. A teacher "
                f"predicts the next token, with the head {HEAD!r}."
            )
        skeleton = self._ready.skeleton
        theirs = None if skeleton is None else head_size(skeleton.loaded.module)
        require_shared_tokens(
            (loaded.processor, head_size(loaded.module), repr(loaded.source)),
            (self._ready.processor, theirs, repr(self.source)),
        )


def head_size(module: Any) -> int | None:
    """Return how many logits a model gives a position; None where its head does not say."""
    weight = getattr(module.get_output_embeddings(), "weight", None)
    return None if weight is None else len(weight)


def require_shared_tokens(student: tuple[Any, int | None, str], teacher: tuple[Any, int | None, str]) -> None:
    """Raise RecipeError where an id is another token of the teacher's, or one of them has no logit for a token.

    A head may be larger than its vocabulary: logits are then compared as far as both heads go.

    Args:
        student, teacher: tokenizer, size of the head (None: unknown), and name in messages.
    """
    own, theirs = ({i: token for token, i in side[0].get_vocab().items()} for side in (student, teacher))
    other = [i for i, token in sorted(own.items()) if theirs.get(i, token) != token]
    if other:
        first = other[0]
        raise RecipeError(
            f"{KEY} {teacher[2]} has another vocabulary than {student[2]}: {len(other):,} of {len(own):,} ids are "
            f"other tokens, e.g. {first} is {theirs[first]!r} there and {own[first]!r} here. Distributions can only be "
            "compared over the same tokens: take a teacher of the same family."
        )
    for tokens, (_, size, name), whose in ((own, teacher, student[2]), (theirs, student, teacher[2])):
        if size is not None and max(tokens) >= size:
            lacking = sum(i >= size for i in tokens)
            raise RecipeError(
                f"{KEY}: the head of {name} has {size:,} outputs and lacks {lacking:,} of the {len(tokens):,} tokens "
                f"of {whose}, whose highest id is {max(tokens):,}. Take a teacher with the same vocabulary."
            )
