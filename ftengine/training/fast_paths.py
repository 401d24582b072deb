"""Choice of the fast paths of a run, after comparison with the model, and their activation while it trains."""

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
from ftengine.training.probe import Around, ProbeBatch

HELP = "Take it out of train.fast_paths."
OWN_FAILS = "the model itself fails on the probe batch"
DRIFTS = "the model itself computes something else the second time, from the same batch and seed"
NOTHING = "it finds nothing in this model that it could compute"

Replaced = dict[str, Mapping[str, int] | None]
"""For each path, by name, the counts of what it replaces; None if it finds nothing to replace."""


class ProbeCache(Protocol):
    """A record of earlier comparisons of some paths with one model, on one batch, that showed no difference."""

    def was_compared(self, replaced: Replaced) -> bool:
        """Return whether paths with these counts were compared before."""

    def keep(self, replaced: Replaced) -> None:
        """Record that paths with these counts were compared."""


class FastPaths:
    """The fast paths of a run.

    Args:
        paths: paths that passed the comparison with `loaded`.
        used: the use of these and the other paths, for environment.json.
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
        """Activate the paths; yield what each replaces."""
        with quick_products(), activated(self.paths, self._loaded, self._context) as replaced:
            yield replaced

    def around_batch(
        self, members: Sequence[int], batch: Batch, loss: Callable[[], Tensor]
    ) -> AbstractContextManager[None]:
        """Return the paths' context for the loss of one micro-batch."""
        around = _around(self.paths)
        return nullcontext() if around is None else around(members, batch, loss)

    @property
    def compute_fewer_tokens(self) -> bool:
        """Whether some of the paths may compute fewer tokens than a micro-batch has."""
        return any(overrides(path, "computed_tokens") for path in self.paths)

    def computed_tokens(self, batch: Batch) -> int | None:
        """Return how many tokens of a micro-batch the model computes; None: all (PluginError: it is no number)."""
        paths = (path for path in self.paths if overrides(path, "computed_tokens"))
        counts = (token_count(path, "computed_tokens", path.computed_tokens(batch)) for path in paths)
        return min((count for count in counts if count is not None), default=None)

    def ordered(self, members: np.ndarray, batch: Batch) -> np.ndarray:
        """Return examples in the paths' preferred order for dividing them (PluginError: one is missing or there twice).

        A batch with several sequences an example, such as preference pairs, is not reordered.
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
    """Activate fast paths for a model (PluginError: one returns no context, or yields no counts)."""
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
    """Return the paths' combined context for each batch; None if no path has one."""
    around = [path.around_batch for path in paths if overrides(path, "around_batch")]

    @contextmanager
    def every(members: Sequence[int], batch: Batch, loss: Callable[[], Tensor]) -> Iterator[None]:
        with ExitStack() as stack:
            for context in around:
                stack.enter_context(context(members, batch, loss))
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
    """Return the paths that replace something in a model and compute the same result on a probe batch.

    All are compared together first; if the result differs, one by one, and those with which it differs are left out.

    Args:
        paths: candidates.
        probe, context: the model with its probe batch, and its training context.
        named: whether the recipe names the paths, so that a wrong or useless one is an error.
        accelerator: of several processes, which must decide alike.
        before: earlier comparisons.

    Raises:
        RecipeError, PluginError: a named path does not work here, finds nothing, computes another result, or fails.
    """
    remaining, used, replaced = list(paths), dict[str, FastPathUse](), Replaced()

    def leave_out(path: FastPath, reason: str) -> None:
        if named:
            raise _of_no_use(path, reason)
        remaining.remove(path)
        used[path.name] = FastPathUse(active=False, reason=reason)

    def refuse(path: FastPath, fault: str, beside: Sequence[FastPath] = ()) -> None:
        others = f" beside {', '.join(other.name for other in beside)}" if beside else ""
        problem = f"{owned(path)} does not compute what {type(probe.loaded.module).__name__} does{others}: {fault}"
        if fault not in (OWN_FAILS, DRIFTS):  # reported by the first step or an earlier message
            if named:
                raise PluginError(f"{problem}. {HELP}")
            context.message(f"{problem}; the run goes on without it")
        remaining.remove(path)
        used[path.name] = FastPathUse(active=False, reason=fault)

    for path in paths:
        if reason := unfit(path, probe.loaded, context.device):
            leave_out(path, reason)
    fault = _compared_once(remaining, probe, context, replaced, accelerator, before)
    if fault and _drifts(probe, context, accelerator, fails=fault == OWN_FAILS):
        for path in tuple(remaining):
            refuse(path, DRIFTS)
    elif fault:
        chosen: list[FastPath] = []
        for path in tuple(remaining):
            chosen.append(path)
            if fault := compared(chosen, probe, context, replaced, accelerator):
                refuse(chosen.pop(), fault, chosen)
    for path in tuple(remaining):
        if counts := replaced.get(path.name):
            used[path.name] = FastPathUse(active=True, replaced=dict(counts))
        else:
            leave_out(path, NOTHING)
    return FastPaths(remaining, probe.loaded, context, dict(sorted(used.items())))


def _compared_once(
    paths: Sequence[FastPath],
    probe: ProbeBatch,
    context: TrainingContext,
    replaced: Replaced,
    accelerator: Accelerator | None,
    before: ProbeCache | None,
) -> str:
    """Return the result of `compared`; skip it if the same paths were compared before and replace the same."""
    if before is None:
        return compared(paths, probe, context, replaced, accelerator)
    counts_by_path, loaded = Replaced(), probe.loaded
    with suppress(Exception), visible(loaded.module), activated(paths, loaded, _quiet(context)) as counts:
        counts_by_path.update(counts)  # the comparison reports a path that fails
    if any(counts_by_path.values()) and before.was_compared(counts_by_path):
        replaced.update(counts_by_path)
        return ""
    fault = compared(paths, probe, context, replaced, accelerator)
    if not fault and any(replaced.values()):
        before.keep(replaced)
    return fault


def _drifts(probe: ProbeBatch, context: TrainingContext, accelerator: Accelerator | None, *, fails: bool) -> bool:
    """Return, and report, whether repeated computations of a model differ, which makes comparison impossible.

    Every process takes part, even if the model `fails` there, because they decide together.
    """
    try:
        fault = "" if fails else probe.drift()
    except Exception as error:  # only the first computation worked
        fault = f"it fails the second time: {error!r}"
    drift = _everywhere(fault, accelerator)
    if drift:
        context.message(
            f"{DRIFTS} ({drift}), so no fast path can be compared with it and none is used: a layer, perhaps of "
            "the strategy, keeps a state from one pass to the next"
        )
    return bool(drift)


def require_device(paths: Iterable[FastPath], device: torch.device) -> None:
    """Raise RecipeError if a path does not work on a device."""
    for path in paths:
        try:
            path.check_device(device)
        except RecipeError as error:
            raise _of_no_use(path, str(error)) from None


def _of_no_use(path: FastPath, reason: str) -> RecipeError:
    text = reason if repr(path.name) in reason else f"fast path {path.name!r}: {reason}"
    return RecipeError(f"{text.rstrip('.')}. {HELP}")


def unfit(path: FastPath, loaded: LoadedModel, device: torch.device) -> str:
    """Return why a path does not work on a device or with a sharded model; "" if it does."""
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
    """Return where paths together differ from a model in any process, or fail; "" if nowhere.

    Args:
        replaced: updated with what the paths replace.
    """
    try:
        probe.own(training=True)  # the model's first pass may also change its state
        before = state_of(probe.loaded)
        fault = _fault(paths, probe, _quiet(context), replaced, accelerator)
        changed = differing(before, state_of(probe.loaded))
        fault = fault or (f"{changed[0]} changed: undo everything on exit" if changed else "")
    except _Nothing:
        fault = ""
    # A path may raise any error; if the model itself fails too, no path is to blame.
    except Exception as error:
        try:
            probe.own(training=True)
        except Exception:
            fault = OWN_FAILS
        else:
            fault = f"it fails: {cause_in(paths[-1], error)}"  # the path that was added last
    return _everywhere(fault, accelerator)


def _quiet(context: TrainingContext) -> TrainingContext:
    return replace(context, message=lambda text: None)


def state_of(loaded: LoadedModel) -> dict[str, object]:
    """Return the parts of a model's state that a fast path might not restore."""
    parts = list(loaded.module.modules())
    return {
        "classes of modules": [type(part) for part in parts],
        "attributes of modules": [sorted(vars(part)) for part in parts],
        "numbers of hooks": [hooks(part) for part in parts],
        "names in the state_dict": list(loaded.module.state_dict()),
        "parameters that train": [name for name, p in loaded.module.named_parameters() if p.requires_grad],
    }


class _Nothing(Exception):
    """No path replaces anything in a model, so nothing needs to be computed."""


def _fault(
    paths: Sequence[FastPath],
    probe: ProbeBatch,
    context: TrainingContext,
    replaced: Replaced,
    accelerator: Accelerator | None,
) -> str:
    drawing = [path for path in paths if path.traits.draws_randomness]

    @contextmanager
    def computation(paths: Sequence[FastPath], recording: bool = True) -> Iterator[Around | None]:
        with activated(paths, probe.loaded, context) as counts:
            if recording:  # only with all paths and in training mode, as a path may replace nothing elsewhere
                replaced.update(counts)
            used = [path for path in paths if counts[path.name] is not None]
            if not used:
                raise _Nothing
            yield _around(used)

    fault = probe.fault(partial(computation, paths), training=True)
    draws = any(replaced[path.name] for path in drawing)
    if not _everywhere(fault, accelerator):
        return probe.evaluated(partial(computation, paths, recording=False))
    if not draws:
        return fault
    # Other dropout masks are no fault: paths that draw them are compared without dropout, the others with it.
    steady = [path for path in paths if path not in drawing and replaced[path.name] is not None]
    fault = probe.fault(partial(computation, steady, recording=False), training=True) if steady else ""
    return _everywhere(fault, accelerator) or probe.fault(partial(computation, paths, recording=False), training=False)


def _everywhere(fault: str, accelerator: Accelerator | None) -> str:
    """Return the fault, or a notice that another process has one, so that all processes decide alike."""
    if accelerator is None or accelerator.num_processes == 1:
        return fault
    faults = accelerator.reduce(torch.tensor(float(bool(fault)), device=accelerator.device), "sum")
    return fault or ("it differs in another process" if float(faults) else "")
