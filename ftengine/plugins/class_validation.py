"""Checks of the classes that plugins offer, made when they are registered."""

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
"""The name with which a recipe leaves the choice of a component to the engine."""

ALLOWED_TO_FAIL = ("missing", "value_error", "assertion_error")
"""Errors of defaults that an author may intend: the option is required, or a validator explains what to do."""

NEAR = 0.83
"""Similarity (difflib's ratio) from which a name counts as a misspelt member of the contract."""

HOOK = "on_"
"""Prefix of methods that are called on events, here as in other libraries."""

PAIRS = (
    ("save", "load"),
    ("state_dict", "load_state_dict"),
)
"""Pairs of methods of which a component must define both or neither."""

SORTS: tuple[type[Component], ...] = (
    api.GenerativeTask,
    api.InBatchTask,
    api.ReferenceTask,
    api.OnPolicyTask,
    api.FittedEvaluator,
    api.ModelEvaluator,
    api.CodeEvaluator,
    api.IntervalEvaluator,
)
"""Specialised bases of a kind, whose members the engine uses only for their subclasses."""


def classes(function: Any) -> tuple[list[Any], str]:
    """Call a hook; return its classes, and what is wrong with its result ("" if nothing)."""
    try:
        with printing_aside():
            offered = function()
        if isinstance(offered, Iterable) and not isinstance(offered, (str, bytes, type)):
            return list(offered), ""
    # A hook of third-party code may raise anything, SystemExit included, which is returned as the cause.
    except (Exception, SystemExit) as error:
        return [], f"failed: {raised(error, getattr(function, '__module__', ''))}"
    return [], f"returned {_described(offered)}; it must return a list of classes"


def raised(error: BaseException, module: str) -> str:
    """Return an error and its place on one line: "KeyError: 'x' (/site-packages/ftengine_x.py:31)".

    Args:
        module: the plugin's module. The place is the innermost frame in its package, if there is one.
    """
    frame, line = innermost(error, module) or next(reversed([*traceback.walk_tb(error.__traceback__)]), (None, 0))
    where = f" ({frame.f_code.co_filename}:{line})" if frame else ""
    return f"{type(error).__name__}: {error}".replace("\n", " ").rstrip(": .") + where


def innermost(error: BaseException, module: str) -> tuple[FrameType, int] | None:
    """Return the innermost frame of an error in the package of a module, with its line; None if there is none."""
    frames, package = [*traceback.walk_tb(error.__traceback__)][::-1], module.partition(".")[0]
    return next((x for x in frames if x[0].f_globals.get("__name__", "").partition(".")[0] == package), None)


def fault(cls: Any, base: type[Component]) -> str:
    """Return what is wrong with a class offered as a component of a kind, and what to do; "" if nothing."""
    if not (isinstance(cls, type) and issubclass(cls, base)):
        return f"it must be a subclass of {base.__name__}"
    return _fault_of_class(cls, base)  # type: ignore[arg-type]  # mypy takes the hash of instances for that of the class


@cache  # the classes stay the same, however many registries a process makes
def _fault_of_class(cls: type[Component], base: type[Component]) -> str:
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name:
        return "it has no name; set `name`"
    if name == AUTO:
        return f"its name is {AUTO!r}, with which recipes leave the choice to the engine; set `name` to another one"
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
    """Return a component's name in quotes, or its class if it has none."""
    name = getattr(cls, "name", None)
    return repr(name) if isinstance(cls, type) and isinstance(name, str) and name else _described(cls)


def written(thing: type | FunctionType) -> str:
    """Return the file and line of a class or function, "ftengine_x.py:31"; "" if it has no file."""
    try:
        return f"{Path(inspect.getsourcefile(thing) or '').name}:{inspect.getsourcelines(thing)[1]}"
    except (OSError, TypeError):
        return ""


def _described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    return "None" if value is None else f"an object of type {type(value).__qualname__}"


def _contracts(cls: type[Component]) -> list[type]:
    """Return the contract classes among a class's bases, nearest first."""
    return [kind for kind in cls.__mro__ if is_contract(kind)]


def _declared(cls: type[Component]) -> list[str]:
    """Return the names that a contract declares without a value, for its classes to set."""
    declared = map(inspect.get_annotations, _contracts(cls))
    return [name for hints in declared for name, type_ in hints.items() if str(type_).startswith("ClassVar")]


def _fault_of_traits(cls: type[Component], base: type[Component]) -> str:
    """Return what is wrong with a component's traits; "" if nothing."""
    expected = type(base.traits)
    if isinstance(cls.traits, expected):
        return ""
    return f"its traits are {_described(cls.traits)}; write `traits = api.{expected.__name__}(…)`"


def _fault_of_sort(cls: type[Component], base: type[Component]) -> str:
    """Return which member needs a base (in SORTS) that the class does not derive from; "" if none."""
    own = _members(kind for kind in cls.__mro__ if not is_contract(kind))
    for sort in (s for s in SORTS if issubclass(s, base) and not issubclass(cls, s)):
        if names := sorted(own.keys() & _members([sort]).keys() - _members([base]).keys()):
            return f"its {names[0]!r} belongs to {sort.__name__}: derive it from `api.{sort.__name__}` ({written(cls)})"
    return ""


def _fault_of_arguments(cls: type[Component]) -> str:
    """Return which method of a task lacks an argument that another of its members requires; "" if none."""
    if not issubclass(cls, Task):
        return ""
    divided = (("encode", "part"), ("generate", "parts"), ("check_generation", "part"))
    required = [("parts", *pair) for pair in divided] if overrides(cls, "parts") else []
    required += [("traits.reads_following", "encode", "following")] if cls.traits.reads_following else []
    for why, method, argument in (entry for entry in required if overrides(cls, entry[1])):
        taken = inspect.signature(getattr(cls, method)).parameters.values()
        if not any(p.name == argument or p.kind is p.VAR_KEYWORD for p in taken):
            return f"its {method!r} takes no `{argument}=None`, which it is given because of `{why}` ({written(cls)})"
    return ""


def _fault_of_names(cls: type[Component], base: type[Component]) -> str:
    """Return which public member is a misspelt one of the contract, or lacks the other of its pair; "" if none."""
    contract = _members(_contracts(cls))
    own = _members(kind for kind in cls.__mro__ if not is_contract(kind))
    # The author cannot rename members of a base that is not a component.
    named = _members(kind for kind in cls.__mro__ if not is_contract(kind) and issubclass(kind, Component))
    for name, member in named.items():
        alike = [meant for meant in contract.keys() - own.keys() if _is_method(contract[meant]) == _is_method(member)]
        for meant in difflib.get_close_matches(name, () if name in contract else alike, n=1, cutoff=NEAR):
            return (
                f"its member {name!r} is not part of {base.__name__}, so the engine never uses it: rename it to "
                f"{meant!r} if that is meant, or else begin it with an underscore ({written(cls)})"
            )
        if name.startswith(HOOK) and name not in contract and _is_method(member):
            there = ", ".join(repr(method) for method in contract if method.startswith(HOOK)) or "none"
            return (
                f"the engine never calls its method {name!r}; {base.__name__} has these {HOOK} methods: {there}. "
                f"If it is a method of your own, begin it with an underscore ({written(cls)})"
            )
    for first, second in (pair for pair in PAIRS if contract.keys() >= set(pair)):
        if (first in own) != (second in own):
            present, missing = (first, second) if first in own else (second, first)
            return f"it defines {present!r} without {missing!r}; define both or neither"
    return ""


def _fault_of_nothing(cls: type[Component], base: type[Component]) -> str:
    """Return that a class defines none of its kind's methods, all of which are optional; "" if it does."""
    methods = [name for name, member in _members([base]).items() if _is_method(member)]
    if base.__abstractmethods__ or any(overrides(cls, name) for name in methods):
        return ""
    return f"it defines none of {base.__name__}'s methods ({', '.join(methods)}), so it does nothing ({written(cls)})"


def _fault_of_methods(cls: type[Component]) -> str:
    """Return which member has another kind or signature than in its contract; "" if none."""
    contract = _members(_contracts(cls))
    own = _members(kind for kind in cls.__mro__ if not is_contract(kind))
    for name in sorted(own.keys() & contract.keys()):
        method = own[name]
        if _is_method(method) != _is_method(contract[name]):
            expected_kind = "a method" if _is_method(contract[name]) else "a value or a property"
            return f"its {name!r} must be {expected_kind}, as in the contract ({written(cls)})"
        if not _is_method(method):
            continue
        bound = isinstance(method, (staticmethod, classmethod))
        if isinstance(contract[name], classmethod) and not bound:
            return f"its {name!r} must be a class method, as in the contract ({written(cls)})"
        expected = list(inspect.signature(getattr(contract[name], "__func__", contract[name])).parameters.values())
        function = method if not bound else getattr(cls, name)
        options = {p.name: None for p in expected if p.kind is p.KEYWORD_ONLY}
        places = [p for p in expected if p.name not in options][1 if bound else 0 :]
        try:
            inspect.signature(function).bind(*places, **options)
        except TypeError:
            expected_signature = _bare(getattr(contract[name], "__func__", contract[name]))
            called = f"{function.__qualname__}{_bare(function)} cannot be called as {name}{expected_signature}"
            return f"its method {called} ({written(getattr(function, '__func__', function))})"
    return ""


def _members(kinds: Iterable[type]) -> dict[str, Any]:
    """Return the public members of classes; a nearer class overrides a farther one."""
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
        return "its Config has a field 'name', which recipes use for the component's name; rename the field"
    try:
        config.model_validate({})
    except ValidationError as error:
        wrong = [item for item in error.errors() if item["loc"] and item["type"] not in ALLOWED_TO_FAIL]
        if wrong:
            key = ".".join(map(str, wrong[0]["loc"]))
            return f"the default of its option {key!r} is {wrong[0]['input']!r}, but: {wrong[0]['msg']}"
    # Unresolved types or a failing default_factory may raise anything; no recipe could use such a Config.
    except Exception as error:
        return f"its Config cannot be used: {type(error).__name__}: {error}".partition("\n")[0].rstrip(" .")
    return ""
