"""What a class must be that a plugin offers, checked when it is registered, before a run needs it."""

from __future__ import annotations

import difflib
import inspect
import traceback
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

from pydantic import ValidationError

from ftengine import api
from ftengine.api import Component, Config, Task, overrides
from ftengine.api.component import is_contract
from ftengine.plugins.distributions import printing_aside

AUTO = "auto"
"""What a recipe writes where it leaves the choice of a component to the engine."""

ALLOWED_TO_FAIL = ("missing", "value_error", "assertion_error")
"""Errors of a default that an author may intend: the option is required, or a validator of his own says what to do."""

NEAR = 0.83
"""How like a member of the contract another must be named to be taken for it, as difflib's ratio."""

HOOK = "on_"
"""How methods begin, here as in other libraries, that are called when something happens."""

RENAMED = {
    "on_event": "write a method for each moment instead, as on_train_begin(event) where it asked for Started, "
    "on_step_end(event) for Stepped, on_run_end(event) for Finished: it gets the same event",
}
"""Members that the contract had before, and what is written now."""

PAIRS = (
    ("save", "load"),
    ("state_dict", "load_state_dict"),
)
"""Members of which one is of no use without the other."""

SORTS: tuple[type[Component], ...] = (
    api.GenerativeTask,
    api.InBatchTask,
    api.ReferenceTask,
    api.FittedEvaluator,
    api.ModelEvaluator,
    api.CodeEvaluator,
    api.IntervalEvaluator,
)
"""Bases of components of one sort, whose members the engine asks of these alone."""


def classes(function: Any) -> tuple[list[Any], str]:
    """Call a hook; return what it offers, and what is wrong with that, "" where nothing is."""
    try:
        with printing_aside():
            offered = function()
        if isinstance(offered, Iterable) and not isinstance(offered, (str, bytes, type)):
            return list(offered), ""
    # A hook of third-party code may raise anything, SystemExit included; it becomes the cause.
    except (Exception, SystemExit) as error:
        return [], f"failed: {raised(error, getattr(function, '__module__', ''))}"
    return [], f"returned {_described(offered)}; it must return a list of classes"


def raised(error: BaseException, module: str) -> str:
    """Say what was raised, and where, in one line: "KeyError: 'x' (/site-packages/ftengine_x.py:31)".

    Args:
        module: of the plugin. The place is the innermost one in its package, where there is one.
    """
    frame, line = innermost(error, module) or next(reversed([*traceback.walk_tb(error.__traceback__)]), (None, 0))
    where = f" ({frame.f_code.co_filename}:{line})" if frame else ""
    return f"{type(error).__name__}: {error}".replace("\n", " ").rstrip(": .") + where


def innermost(error: BaseException, module: str) -> tuple[FrameType, int] | None:
    """Return the innermost frame of an error in the package of a module, with its line; None where there is none."""
    frames, package = [*traceback.walk_tb(error.__traceback__)][::-1], module.partition(".")[0]
    return next((x for x in frames if x[0].f_globals.get("__name__", "").partition(".")[0] == package), None)


def fault(cls: Any, base: type[Component]) -> str:
    """Say what is wrong with a class that is offered as a component of a kind, and what to do; "" where nothing is."""
    if not (isinstance(cls, type) and issubclass(cls, base)):
        return f"it must be a subclass of {base.__name__}"
    return _fault_of_class(cls, base)  # type: ignore[arg-type]  # mypy takes the hash of instances for that of the class


@cache  # the classes stay the same, however many registries a process makes
def _fault_of_class(cls: type[Component], base: type[Component]) -> str:
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name:
        return "it has no name; set `name`"
    if name == AUTO:
        return f"its name is {AUTO!r}, by which recipes leave the choice to the engine; set `name` to another"
    contract = _contracts(cls)[0].__name__
    unset = [name for name in _declared(cls) if not hasattr(cls, name)]
    if unset:
        return f"it does not set {' and '.join(map(repr, unset))}, which {contract} requires"
    if unwritten := sorted(cls.__abstractmethods__):
        return f"it does not implement {' and '.join(map(repr, unwritten))}, which {contract} requires"
    of_names = _fault_of_sort(cls, base) or _fault_of_methods(cls) or _fault_of_names(cls, base)
    of_use = _fault_of_traits(cls, base) or of_names or _fault_of_arguments(cls) or _fault_of_nothing(cls, base)
    return of_use or _fault_of_config(cls.Config)


def described(cls: Any) -> str:
    """Name what is offered: a component's name, else its class."""
    name = getattr(cls, "name", None)
    return repr(name) if isinstance(cls, type) and isinstance(name, str) and name else _described(cls)


def written(thing: type | FunctionType) -> str:
    """Return where a class or function is written, "ftengine_x.py:31"; "" where there is no file."""
    try:
        return f"{Path(inspect.getsourcefile(thing) or '').name}:{inspect.getsourcelines(thing)[1]}"
    except (OSError, TypeError):
        return ""


def _described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    return "None" if value is None else f"an object of type {type(value).__qualname__}"


def _contracts(cls: type[Component]) -> list[type]:
    """Return the classes of contracts that a class derives from, the nearest first."""
    return [kind for kind in cls.__mro__ if is_contract(kind)]


def _declared(cls: type[Component]) -> list[str]:
    """Return the names that a contract declares without a value, for its classes to set."""
    declared = map(inspect.get_annotations, _contracts(cls))
    return [name for hints in declared for name, type_ in hints.items() if str(type_).startswith("ClassVar")]


def _fault_of_traits(cls: type[Component], base: type[Component]) -> str:
    """Say what is wrong with a component's traits, which every object of it begins with."""
    wanted = type(base.traits)
    if isinstance(cls.traits, wanted):
        return ""
    return f"its traits are {_described(cls.traits)}; write `traits = api.{wanted.__name__}(…)`"


def _fault_of_sort(cls: type[Component], base: type[Component]) -> str:
    """Say which member the engine asks only of components of a sort that a class does not derive from."""
    own = _members(kind for kind in cls.__mro__ if not is_contract(kind))
    for sort in (one for one in SORTS if issubclass(one, base) and not issubclass(cls, one)):
        if names := sorted(own.keys() & _members([sort]).keys() - _members([base]).keys()):
            return f"its {names[0]!r} is of {sort.__name__}: derive it from `api.{sort.__name__}` ({written(cls)})"
    return ""


def _fault_of_arguments(cls: type[Component]) -> str:
    """Say which argument a method of a task does not take that other members of it ask for."""
    if not issubclass(cls, Task):
        return ""
    divided = (("encode", "part"), ("generate", "parts"), ("check_generation", "part"))
    asked = [("parts", *one) for one in divided] if overrides(cls, "parts") else []
    asked += [("traits.reads_following", "encode", "following")] if cls.traits.reads_following else []
    for why, method, argument in (one for one in asked if overrides(cls, one[1])):
        taken = inspect.signature(getattr(cls, method)).parameters.values()
        if not any(p.name == argument or p.kind is p.VAR_KEYWORD for p in taken):
            return f"its {method!r} takes no `{argument}=None`, which it is given because of `{why}` ({written(cls)})"
    return ""


def _fault_of_names(cls: type[Component], base: type[Component]) -> str:
    """Say which public member is nearly one of the contract, which nobody would ask for, or lacks its other half."""
    contract = _members(_contracts(cls))
    own = _members(kind for kind in cls.__mro__ if not is_contract(kind))
    # What a class of somebody else, that is no component, is called is not its author's to change.
    named = _members(kind for kind in cls.__mro__ if not is_contract(kind) and issubclass(kind, Component))
    for name, member in named.items():
        if name in RENAMED and name not in contract:
            return f"{base.__name__} has {name!r} no longer: {RENAMED[name]} ({written(cls)})"
        alike = [meant for meant in contract.keys() - own.keys() if _is_method(contract[meant]) == _is_method(member)]
        for meant in difflib.get_close_matches(name, () if name in contract else alike, n=1, cutoff=NEAR):
            return (
                f"its member {name!r} is none of {base.__name__}, and the engine never asks for it: if {meant!r} is "
                f"meant, call it so, else begin it with an underscore ({written(cls)})"
            )
        if name.startswith(HOOK) and name not in contract and _is_method(member):
            there = ", ".join(repr(known) for known in contract if known.startswith(HOOK)) or "none"
            return (
                f"the engine never calls its method {name!r}; of those that begin so, {base.__name__} has {there}. If "
                f"it is its own, begin it with an underscore ({written(cls)})"
            )
    for one, other in (pair for pair in PAIRS if contract.keys() >= set(pair)):
        if (one in own) != (other in own):
            there, missing = (one, other) if one in own else (other, one)
            return f"it writes {there!r} without {missing!r}; neither is of use without the other"
    return ""


def _fault_of_nothing(cls: type[Component], base: type[Component]) -> str:
    """Say that a class of a kind whose methods are all optional writes none of them, as where each is misspelt."""
    methods = [name for name, member in _members([base]).items() if _is_method(member)]
    if base.__abstractmethods__ or any(overrides(cls, name) for name in methods):
        return ""
    return f"it writes none of {base.__name__}'s methods ({', '.join(methods)}), so it does nothing ({written(cls)})"


def _fault_of_methods(cls: type[Component]) -> str:
    """Say which member is a method where its contract's is none, or the reverse, or cannot be called as that is."""
    contract = _members(_contracts(cls))
    own = _members(kind for kind in cls.__mro__ if not is_contract(kind))
    for name in sorted(own.keys() & contract.keys()):
        method = own[name]
        if _is_method(method) != _is_method(contract[name]):
            wanted_kind = "a method" if _is_method(contract[name]) else "a value, or a property"
            return f"its {name!r} must be {wanted_kind}, as the contract's is ({written(cls)})"
        if not _is_method(method):
            continue
        bound = isinstance(method, (staticmethod, classmethod))
        if isinstance(contract[name], classmethod) and not bound:
            return f"its {name!r} must be a class method, as the contract's is ({written(cls)})"
        wanted = list(inspect.signature(getattr(contract[name], "__func__", contract[name])).parameters.values())
        given = method if not bound else getattr(cls, name)
        options = {p.name: None for p in wanted if p.kind is p.KEYWORD_ONLY}
        places = [p for p in wanted if p.name not in options][1 if bound else 0 :]
        try:
            inspect.signature(given).bind(*places, **options)
        except TypeError:
            wanted_so = _bare(getattr(contract[name], "__func__", contract[name]))
            called = f"{given.__qualname__}{_bare(given)} cannot be called as {name}{wanted_so}"
            return f"its method {called} ({written(getattr(given, '__func__', given))})"
    return ""


def _members(kinds: Iterable[type]) -> dict[str, Any]:
    """Return the public members of classes, as the nearest has them."""
    return {name: x for kind in list(kinds)[::-1] for name, x in vars(kind).items() if name[0] != "_"}


def _is_method(member: Any) -> bool:
    return inspect.isfunction(member) or isinstance(member, (staticmethod, classmethod))


def _bare(function: Any) -> str:
    """Return a function's signature without types."""
    parameters = inspect.signature(function).parameters.values()
    return str(inspect.Signature([p.replace(annotation=p.empty) for p in parameters]))


def _fault_of_config(config: Any) -> str:
    if not (isinstance(config, type) and issubclass(config, Config)):
        return "its Config must be a subclass of ftengine.api.Config: write `class Config(api.Config):`"
    if "name" in config.model_fields:
        return "its Config has a field 'name', which is the component's own name in recipes; call it otherwise"
    try:
        config.model_validate({})
    except ValidationError as error:
        wrong = [item for item in error.errors() if item["loc"] and item["type"] not in ALLOWED_TO_FAIL]
        if wrong:
            key = ".".join(map(str, wrong[0]["loc"]))
            return f"the default of its option {key!r} is {wrong[0]['input']!r}, but: {wrong[0]['msg']}"
    # Types that cannot be resolved, a factory of defaults that raises: whatever it is, no recipe could use it.
    except Exception as error:
        return f"its Config cannot be used: {type(error).__name__}: {error}".partition("\n")[0].rstrip(" .")
    return ""
