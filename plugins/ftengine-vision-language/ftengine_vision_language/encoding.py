"""Tokens and labels of a conversation with pictures, by the model's own processor and chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftengine.errors import DataError, RecipeError
from ftengine_vision_language.rows import Dialogue, Turn

if TYPE_CHECKING:
    from ftengine.api import LoadedModel

IGNORED = -100

REFUSED = {
    "paligemma": "reads its prompt by bidirectional attention, which is told by token types of prompt and answer"
}
"""Types of models that are not tuned rightly here, and why."""


@dataclass(frozen=True)
class Encoded:
    """An encoded conversation.

    Args:
        text: what the chat template writes, with a mark for each picture.
        ids: its tokens, with those that stand for pictures.
        labels: the tokens that train, else `IGNORED`.
    """

    text: str
    ids: list[int]
    labels: list[int]


def tokenizer_of(processor: Any) -> Any:
    """Return a processor's tokenizer (RecipeError: it reads no pictures)."""
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise RecipeError(
            "tasks on pictures and text need the model's processor of pictures and text, and the model came with "
            f"{type(processor).__name__}. Set model.loader to {{name: transformers, processor: all}}, and put its "
            "preprocessor_config.json or processor_config.json into the model's folder."
        )
    return processor.tokenizer


def written(processor: Any, dialogue: Dialogue, turns: int | None = None, *, asks: bool = False) -> str:
    """Return the first turns (None: all) in the model's chat template, up to the answer's first token if `asks`.

    Raises:
        RecipeError: the model has no chat template.
        DataError: the template refuses the conversation.
    """
    template = getattr(processor, "chat_template", None) or tokenizer_of(processor).chat_template
    if not template:
        raise RecipeError("the model has no chat template, which says where pictures stand. Add chat_template.jinja.")
    messages = dialogue.messages(turns)
    try:
        return str(processor.apply_chat_template(messages, template, tokenize=False, add_generation_prompt=asks))
    # Templates raise errors of every class on roles or orders that they do not take.
    except Exception as error:
        raise DataError(f"the model's chat template refuses the conversation: {error}") from None


def processed(processor: Any, texts: Sequence[str], pictures: Sequence[Sequence[Any]], side: str = "right") -> Any:
    """Return what the model reads of some texts and their pictures, padded.

    A batch without pictures has none of their keys. No text is ever cut.
    """
    begin = tokenizer_of(processor).bos_token
    special = not (begin and texts[0].startswith(begin))
    given: dict[str, Any] = {"text": list(texts), "padding": True, "padding_side": side, "return_tensors": "pt"}
    given["add_special_tokens"] = special
    if not any(pictures):
        return processor(**given)
    try:
        return processor(images=[list(some) for some in pictures], **given)
    except (IndexError, TypeError, ValueError):
        if all(pictures):
            raise
    return processor(images=[picture for some in pictures for picture in some], **given)


def encode(processor: Any, dialogue: Dialogue, pictures: Sequence[Any], *, last_only: bool = False) -> Encoded:
    """Return the tokens of a conversation; the assistant's turns train, each with the token that ends it.

    Args:
        pictures: opened, in their order.
        last_only: whether its last turn alone trains.

    Raises:
        DataError: there is no answer, or the template writes an earlier turn otherwise once others follow.
    """
    text = written(processor, dialogue)
    answers = [i for i, turn in enumerate(dialogue.turns) if turn.role == "assistant" and i]
    if not answers:
        raise DataError("the conversation has no assistant turn that answers something; nothing to train on.")
    inputs = processed(processor, [text], [pictures])
    ids = inputs["input_ids"][0].tolist()
    labels = [IGNORED] * len(ids)
    for turn in answers[-1:] if last_only else answers:
        begin, end = written(processor, dialogue, turn, asks=True), written(processor, dialogue, turn + 1)
        if not text.startswith(begin) or not text.startswith(end):
            if turn != answers[-1]:
                raise DataError(
                    "the model's chat template writes an earlier answer otherwise once others follow, so it cannot be "
                    "trained as it will be served. Set task.train_on to last."
                )
            raise DataError("the model's chat template writes an answer otherwise than behind its generation prompt.")
        before = dialogue.pictures_of(turn)
        first = _length(processor, ids, begin, pictures[: len(before)])
        last = _length(processor, ids, end.rstrip(), pictures[: len(dialogue.pictures_of(turn + 1))])
        labels[first:last] = ids[first:last]
    return Encoded(text, ids, labels)


def _length(processor: Any, ids: list[int], text: str, pictures: Sequence[Any]) -> int:
    """Return how many of the tokens a beginning of the text makes (DataError: it has other tokens by itself)."""
    own = processed(processor, [text], [pictures])["input_ids"][0].tolist()
    end = tokenizer_of(processor).eos_token_id
    if own[-1:] == [end] and own != ids[: len(own)]:
        own = own[:-1]  # a tokenizer that ends every text
    if own != ids[: len(own)]:
        raise DataError("the end of a prompt and the beginning of its answer share a token. Begin answers otherwise.")
    return len(own)


def require_pictures_read(loaded: LoadedModel, probe_batch: Callable[[LoadedModel], Mapping[str, Any]]) -> None:
    """Check that a model reads what its chat template and processor write of a picture; without weights, but the model.

    Raises:
        RecipeError: the model is of a refused type, the template leaves pictures out, or the processor writes another
            number of tokens for a picture than the model's vision part gives.
    """
    import torch

    from ftengine.model import evaluating

    module: Any = loaded.module
    kind = getattr(getattr(module, "config", None), "model_type", "")
    if kind in REFUSED:
        raise RecipeError(f"models of type {kind} cannot be tuned by this task: the model {REFUSED[kind]}.")
    with_picture, without = (
        Dialogue((Turn("user", parts),), (None,) * (len(parts) - 1))
        for parts in ((None, "What is it?"), ("What is it?",))
    )
    if written(loaded.processor, with_picture) == written(loaded.processor, without):
        raise RecipeError(
            "the model's chat template writes nothing where a picture stands, so that the model would not see it. Put "
            "the template of the model's processor into chat_template.jinja."
        )
    if any(parameter.is_meta for parameter in module.parameters()):
        return
    parameter = next(module.parameters())
    batch = {
        key: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
        for key, value in probe_batch(loaded).items()
    }
    try:
        # As in training, where frozen weights may have another type than those that train. An outer autocast would keep
        # the weights of now, which the trained part is read into.
        autocast = torch.autocast(parameter.device.type, torch.bfloat16, cache_enabled=False)
        with torch.no_grad(), evaluating(module), autocast:
            module(**batch)
    except RuntimeError:  # of this probe's types or memory: training says more
        return
    except (IndexError, ValueError) as error:  # what models answer to a number of tokens that is not their own
        raise RecipeError(
            f"the model cannot read what its processor makes of a picture: {str(error)[:300]}. Is the processor "
            "(preprocessor_config.json, processor_config.json) that of this model, with its picture and patch size?"
        ) from None
