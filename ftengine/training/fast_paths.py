"""The fast paths of a run: which of them compute what the model does, and those while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ftengine.api import Batch, FastPath, LoadedModel, TrainingContext, overrides
from ftengine.equivalence import differing
from ftengine.errors import PluginError, RecipeError
from ftengine.model.modes import hooks
from ftengine.model.probing import visible
from ftengine.parallel.arithmetic import quick_products
from ftengine.parallel.sharding import is_sharded
from ftengine.plugins.attribution import cause_in, contract_error, token_count
from ftengine.plugins.attribution import named as owned
from ftengine.run.records import FastPathUse
from ftengine.training.dropout_statistics import dropout_fault, fewer_calls
from ftengine.training.probe import Around, Dropouts, ProbeBatch

HELP = "Take it out of train.fast_paths."
OWN_FAILS = "the model itself fails on the probe batch"
DRIFTS = "the model itself computes something else the second time, from the same batch and seed"
NOTHING = "it finds nothing in this model that it could compute"

Replaced = dict[str, Mapping[str, int] | None]
"""What each path computes otherwise, by its name; None where it finds nothing."""


class ProbeCache(Protocol):
    """What is known of comparisons of some paths with one model, on one batch, that found no difference."""

    def was_compared(self, replaced: Replaced) -> bool:
        """Say whether paths that replace so much were compared."""

    def keep(self, replaced: Replaced) -> None:
        """Remember that they were."""


class FastPaths:
    """The fast paths of a run.

    Args:
        paths: those that are trusted with `loaded`.
        used: of these and the others, for environment.json.
    """

    def __init__(
        self,
        paths: Sequence[FastPath],
        loaded: LoadedModel,
        context: TrainingContext,
        used: Mapping[str, FastPathUse],
    ) -> None:
        self.paths, self.used, self._loaded, self._context = tuple(paths), used, loaded, context

    @contextmanager
    def active(self) -> Iterator[Replaced]:
        """Have the model compute by them; yields what each replaces."""
        with quick_products(), activated(self.paths, self._loaded, self._context) as replaced:
            yield replaced

    def around_batch(
        self, members: Sequence[int], batch: Batch, loss: Callable[[], Tensor]
    ) -> AbstractContextManager[None]:
        """Hold while the loss of a micro-batch is computed."""
        around = _around(self.paths)
        return nullcontext() if around is None else around(members, batch, loss)

    @property
    def compute_fewer_tokens(self) -> bool:
        """Whether some of the paths may compute fewer tokens than a micro-batch has."""
        return any(overrides(path, "computed_tokens") for path in self.paths)

    def computed_tokens(self, batch: Batch) -> int | None:
        """Return how many tokens of a micro-batch the model computes (PluginError: no number); None: all of them."""
        paths = (path for path in self.paths if overrides(path, "computed_tokens"))
        counts = (token_count(path, "computed_tokens", path.computed_tokens(batch)) for path in paths)
        return min((count for count in counts if count is not None), default=None)

    def ordered(self, members: np.ndarray, batch: Batch) -> np.ndarray:
        """Return examples in the order in which they are best divided (PluginError: one is lost, or there twice).

        A batch with several sequences an example, such as those of a preference pair, is left as it is.
        """
        if {len(x) for x in batch.values() if isinstance(x, Tensor) and x.ndim} != {len(members)}:
            return members
        for path in self.paths:
            order = path.order(batch) if overrides(path, "order") else None
            if order is not None:
                if sorted(order) != list(range(len(members))):
                    raise contract_error(path, "order", order, "each example's number in the batch once, or None")
                return members[list(order)]
        return members

    def __str__(self) -> str:
        return ", ".join(path.name for path in self.paths) or "none"


@contextmanager
def activated(paths: Sequence[FastPath], loaded: LoadedModel, context: TrainingContext) -> Iterator[Replaced]:
    """Have a model compute by some fast paths (PluginError: one returns no context, or yields no counts)."""
    replaced, context = Replaced(), replace(context, paths=[path.name for path in paths])
    with ExitStack() as stack:
        for path in paths:
            entered = path.activate(loaded, context)
            if not isinstance(entered, AbstractContextManager):
                raise contract_error(
                    path, "activate", entered, "a context manager: decorate it with contextlib.contextmanager"
                )
            counts = stack.enter_context(entered)
            if not (counts is None or isinstance(counts, Mapping)):
                raise contract_error(path, "activate", counts, "a context that yields a mapping of counts, or None")
            replaced[path.name] = counts
        yield replaced


def _around(paths: Sequence[FastPath]) -> Around | None:
    """Return what holds around each batch by some paths; None where none of them asks for that."""
    around = [path.around_batch for path in paths if overrides(path, "around_batch")]

    @contextmanager
    def every(members: Sequence[int], batch: Batch, loss: Callable[[], Tensor]) -> Iterator[None]:
        with ExitStack() as stack:
            for one in around:
                stack.enter_context(one(members, batch, loss))
            yield

    return every if around else None


def choose_fast_paths(
    paths: Sequence[FastPath],
    probe: ProbeBatch,
    context: TrainingContext,
    *,
    named: bool,
    accelerator: Accelerator | None = None,
    before: ProbeCache | None = None,
) -> FastPaths:
    """Return the paths that replace something in a model and compute what it does, on a probe batch.

    They are compared all together; if they differ from the model's own way, added one by one and left out if they do.

    Args:
        paths: those that may be used.
        probe, context: the model and its batch, and its training.
        named: whether the recipe names them, so that one that is wrong or of no use is an error.
        accelerator: of several processes, which decide together.
        before: what is known of comparisons of the same.

    Raises:
        RecipeError, PluginError: a named one cannot compute here, finds nothing, computes something else, or fails.
    """
    left, used, replaced = list(paths), dict[str, FastPathUse](), Replaced()

    def leave_out(path: FastPath, reason: str) -> None:
        if named:
            raise _of_no_use(path, reason)
        left.remove(path)
        used[path.name] = FastPathUse(active=False, reason=reason)

    def refuse(path: FastPath, fault: str, beside: Sequence[FastPath] = ()) -> None:
        others = f" beside {', '.join(one.name for one in beside)}" if beside else ""
        told = f"{owned(path)} does not compute what {type(probe.loaded.module).__name__} does{others}: {fault}"
        if fault not in (OWN_FAILS, DRIFTS):  # of which the first step tells, or the message before
            if named:
                raise PluginError(f"{told}. {HELP}")
            context.message(f"{told}; the run goes on without it")
        left.remove(path)
        used[path.name] = FastPathUse(active=False, reason=fault)

    for path in paths:
        if reason := unfit(path, probe.loaded, context.device):
            leave_out(path, reason)
    fault = _compared_once(left, probe, context, replaced, accelerator, before)
    if fault and _drifts(probe, context, accelerator, fails=fault == OWN_FAILS):
        for path in tuple(left):
            refuse(path, DRIFTS)
    elif fault:
        kept: list[FastPath] = []
        for path in tuple(left):
            kept.append(path)
            if fault := compared(kept, probe, context, replaced, accelerator):
                refuse(kept.pop(), fault, kept)
    for path in tuple(left):
        if counts := replaced.get(path.name):
            used[path.name] = FastPathUse(active=True, replaced=dict(counts))
        else:
            leave_out(path, NOTHING)
    return FastPaths(left, probe.loaded, context, dict(sorted(used.items())))


def _compared_once(
    paths: Sequence[FastPath],
    probe: ProbeBatch,
    context: TrainingContext,
    replaced: Replaced,
    accelerator: Accelerator | None,
    before: ProbeCache | None,
) -> str:
    """Return what `compared` does; where they were compared before and replace the same, nothing is computed."""
    if before is None:
        return compared(paths, probe, context, replaced, accelerator)
    found, loaded = Replaced(), probe.loaded
    with suppress(Exception), visible(loaded.module), activated(paths, loaded, _quiet(context)) as counts:
        found.update(counts)  # where one fails, the comparison tells of it
    if any(found.values()) and before.was_compared(found):
        replaced.update(found)
        return ""
    fault = compared(paths, probe, context, replaced, accelerator)
    if not fault and any(replaced.values()):
        before.keep(replaced)
    return fault


def _drifts(probe: ProbeBatch, context: TrainingContext, accelerator: Accelerator | None, *, fails: bool) -> bool:
    """Say, and tell, whether a model computes something else each time, so that nothing can be compared with it.

    Every process asks, also one in which the model `fails` anyway: they decide together.
    """
    try:
        fault = "" if fails else probe.drift()
    except Exception as error:  # the first time it was computed
        fault = f"it fails the second time: {error!r}"
    drift = _everywhere(fault, accelerator)
    if drift:
        context.message(
            f"{DRIFTS} ({drift}), so that no fast path can be compared with it and none is used: a layer, perhaps "
            "of the strategy, keeps a state from one pass to the next"
        )
    return bool(drift)


def require_device(paths: Iterable[FastPath], device: torch.device) -> None:
    """Refuse paths that cannot compute on a device (RecipeError)."""
    for path in paths:
        try:
            path.check_device(device)
        except RecipeError as error:
            raise _of_no_use(path, str(error)) from None


def _of_no_use(path: FastPath, reason: str) -> RecipeError:
    told = reason if repr(path.name) in reason else f"fast path {path.name!r}: {reason}"
    return RecipeError(f"{told.rstrip('.')}. {HELP}")


def unfit(path: FastPath, loaded: LoadedModel, device: torch.device) -> str:
    """Say why a path cannot compute on a device, or with a model that is divided; "" where it can."""
    try:
        path.check_device(device)
    except RecipeError as error:
        return str(error)
    sharded = is_sharded(loaded.module) and not path.traits.supports_sharding
    return "it does not work on sharded parameters (train.parallel: fsdp)" if sharded else ""


def compared(
    paths: Sequence[FastPath],
    probe: ProbeBatch,
    context: TrainingContext,
    replaced: Replaced,
    accelerator: Accelerator | None = None,
) -> str:
    """Say where paths, together, compute something else than a model does, or fail; "" nowhere, in any process.

    Args:
        replaced: is told what they replace.
    """
    try:
        probe.own(training=True)  # the model's first pass may leave something in it, too
        before = state_of(probe.loaded)
        fault = _fault(paths, probe, _quiet(context), replaced, accelerator)
        left = differing(before, state_of(probe.loaded))
        fault = fault or (f"{left[0]} changed: undo everything on exit" if left else "")
    except _Nothing:
        fault = ""
    # Whatever a path raises, the model's own way is there: where that fails too, no path is to blame.
    except Exception as error:
        try:
            probe.own(training=True)
        except Exception:
            fault = OWN_FAILS
        else:
            fault = f"it fails: {cause_in(paths[-1], error)}"  # the one that was added last
    return _everywhere(fault, accelerator)


def _quiet(context: TrainingContext) -> TrainingContext:
    return replace(context, message=lambda text: None)


def state_of(loaded: LoadedModel) -> dict[str, object]:
    """Return what a fast path may have changed in a model once it is left."""
    parts = list(loaded.module.modules())
    return {
        "classes of modules": [type(part) for part in parts],
        "attributes of modules": [sorted(vars(part)) for part in parts],
        "numbers of hooks": [hooks(part) for part in parts],
        "names in the state_dict": list(loaded.module.state_dict()),
        "parameters that train": [name for name, p in loaded.module.named_parameters() if p.requires_grad],
    }


class _Nothing(Exception):
    """Raised where no path finds anything in a model, so that nothing need be computed."""


def _fault(
    paths: Sequence[FastPath],
    probe: ProbeBatch,
    context: TrainingContext,
    replaced: Replaced,
    accelerator: Accelerator | None,
) -> str:
    drawing = [path for path in paths if path.traits.draws_randomness]
    dropouts = Dropouts()

    @contextmanager
    def way(paths: Sequence[FastPath], watched: bool = False, trains: bool = True) -> Iterator[Around | None]:
        with activated(paths, probe.loaded, context) as counts, dropouts if watched else nullcontext():
            if watched or (trains and not drawing):  # a path may replace nothing where nothing trains
                replaced.update(counts)
            used = [path for path in paths if counts[path.name] is not None]
            if not used:
                raise _Nothing
            yield _around(used)

    fault = probe.fault(partial(way, paths, watched=bool(drawing)), training=True)
    draws = any(replaced[path.name] for path in drawing)
    if no_dropout := _everywhere(dropouts.fault, accelerator):
        return no_dropout
    if not _everywhere(fault, accelerator):
        return probe.evaluated(partial(way, paths, trains=False))
    if not draws:
        return fault
    # Other masks are no fault: what draws them is compared without dropout, the rest with it.
    steady = [path for path in paths if path not in drawing and replaced[path.name] is not None]
    fault = probe.fault(partial(way, steady), training=True) if steady else ""
    fault = _everywhere(fault, accelerator) or probe.fault(partial(way, paths), training=False)
    measured = not fault and not is_sharded(probe.loaded.module)
    if measured and fewer_calls(probe, partial(way, paths)):
        fault = dropout_fault(probe, partial(way, paths))
    return fault


def _everywhere(fault: str, accelerator: Accelerator | None) -> str:
    """Return the fault, or that another process has one, so that all decide alike."""
    if accelerator is None or accelerator.num_processes == 1:
        return fault
    faults = accelerator.reduce(torch.tensor(float(bool(fault)), device=accelerator.device), "sum")
    return fault or ("it differs in another process" if float(faults) else "")
