"""Imports run one way, plugins see only public names, and what must answer quickly loads nothing heavy.

The rules are about source, so the source is parsed and nothing of it is imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    ("__init__",),  # the front door: it names what is public and imports it on use
    ("errors", "_native"),
    ("text",),
    ("api",),
    ("identity", "equivalence"),
    ("model",),
    ("chat", "generation"),
    ("plugins",),
    ("run",),
    ("data", "parallel"),
    ("training", "evaluation"),
    ("report",),
    ("engine",),
    ("testing",),
    ("cli",),
    ("__main__",),
)
"""The rooms of ftengine: each imports from the lines above its own, and rooms of one line not from one another."""

OPS = "ops"
"""The room beside the others: it imports only torch and the standard library."""

READS_OPS = "ftengine.parallel.arithmetic"
"""The only module of the engine that imports ops: by what a processor multiplies matrices. Plugins may as well."""

NATIVE = "_native"
"""The compiled module that chooses instruction sets; it imports nothing."""

BENCH = "ftengine_bench"
"""The plugin that measures ops. It needs no more than they do, so that it runs on a machine with torch alone."""

BENCH_COMMAND = "ftengine_bench.command"
"""Its module for the command line, which needs click."""

PUBLIC = (
    "ftengine.api",
    "ftengine.chat",
    "ftengine.equivalence",
    "ftengine.errors",
    "ftengine.generation",
    "ftengine.identity",
    "ftengine.model",
    "ftengine.ops",
    "ftengine.testing",
    "ftengine.text",
)
"""What plugins may import, beside the names that `ftengine` itself offers."""

FRONTS = ("ftengine.data", "ftengine.evaluation")
"""Rooms of which plugins may import what the room itself offers, and no module in it."""

BOX = "ftengine_builtins"
"""What ships in the box: other plugins may derive from the classes that its packages publish (`__all__`)."""

QUICK = ("__init__", "api", "errors", "text", "plugins", "cli")
"""The rooms that `--help` and recipe errors load; a plugin's `__init__` is loaded with them."""

HEAVY = ("accelerate", "datasets", "peft", "safetensors.torch", "torch", "transformers")
MODELLING = (
    "torch.distributed.tensor",
    "torch.distributed.fsdp",
    "transformers.activations",
    "transformers.modeling_utils",
)
"""What takes seconds beyond torch itself, and only work with a model needs."""


@dataclass(frozen=True)
class Import:
    """One imported thing.

    Args:
        source: the module that imports; a package's own module ends in `.__init__`.
        line: where it does.
        target: the module that is imported.
        name: what is taken out of it, or "" where the module itself is meant.
        when: "loading" (runs when `source` is loaded), "called" (inside a function) or "typing".
    """

    source: str
    line: int
    target: str
    name: str
    when: str

    @property
    def what(self) -> str:
        return f"{self.target}.{self.name}" if self.name else self.target

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.what}"


class Reader(ast.NodeVisitor):
    """Collects what a module imports; `import_module("literal")` counts as well."""

    def __init__(self, module: str, known: Iterable[str]) -> None:
        self.module = module
        self.known = {name.removesuffix(".__init__") for name in known}
        self.when = "loading"
        self.found: list[Import] = []

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(node.lineno, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        package = self.module.split(".")[: -node.level] if node.level else []
        target = ".".join([*package, *filter(None, [node.module])])
        for alias in node.names:
            inner = f"{target}.{alias.name}"
            if inner in self.known:
                self._add(node.lineno, inner)
            else:
                self._add(node.lineno, target, alias.name)

    def visit_Call(self, node: ast.Call) -> None:
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
            self._add(node.lineno, str(node.args[0].value))
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        typing = ast.unparse(node.test).endswith("TYPE_CHECKING") and not isinstance(node.test, ast.UnaryOp)
        self._visit_as("typing" if typing else self.when, node.body)
        self._visit_as(self.when, [node.test, *node.orelse])

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._visit_as(self.when, [*node.decorator_list, node.args])
        self._visit_as("called", node.body)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 (ast names it)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_as("called", [node.body])

    def _visit_as(self, when: str, nodes: Iterable[ast.AST]) -> None:
        outer, self.when = self.when, when
        for node in nodes:
            self.visit(node)
        self.when = outer

    def _add(self, line: int, target: str, name: str = "") -> None:
        self.found.append(Import(self.module, line, target, name, self.when))


def read_package(folder: Path) -> dict[str, str]:
    """Return the source of every module of a package, by dotted name."""
    files = sorted(folder.rglob("*.py"))
    return {".".join(f.relative_to(folder.parent).with_suffix("").parts): f.read_text("utf-8") for f in files}


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def imports_of(modules: Mapping[str, str], beside: Iterable[str] = ()) -> list[Import]:
    """Return what modules import, given the names of further modules that they may import from."""
    found = []
    for module, source in modules.items():
        reader = Reader(module, [*modules, *beside])
        reader.visit(parsed(source))
        found += reader.found
    return found


def offered_names(front: str) -> dict[str, str]:
    """Return the names that ftengine's front door offers, and the module that each comes from."""
    tables = {ast.unparse(n.targets[0]): n.value for n in ast.parse(front).body if isinstance(n, ast.Assign)}
    homes = ast.literal_eval(tables["_HOMES"])
    return {"__version__": "ftengine"} | {name: module for module, names in homes.items() for name in names.split()}


def published(source: str) -> list[str]:
    """Return a module's `__all__`."""
    tables = {ast.unparse(n.targets[0]): n.value for n in ast.parse(source).body if isinstance(n, ast.Assign)}
    return ast.literal_eval(tables["__all__"])


def room_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def layer_of(room: str) -> int:
    """Return a room's line in LAYERS, or -1 where it has none."""
    return next((line for line, rooms in enumerate(LAYERS) if room in rooms), -1)


def engine_faults(found: Iterable[Import], offered: Mapping[str, str]) -> Iterator[str]:
    """Say which imports of ftengine's own modules open a door the wrong way."""
    for item in found:
        here, top = room_of(item.source), item.target.split(".")[0]
        # A name taken from the front door comes from the module behind it.
        behind = offered.get(item.name, item.target) if item.target == "ftengine" else item.target
        there = room_of(behind)
        if top.startswith("ftengine_"):
            yield f"{item}: the engine knows no plugin"
        elif here == OPS:
            own = top == "ftengine" and there in (OPS, NATIVE)
            if not own and top not in {*sys.stdlib_module_names, "torch"}:
                yield f"{item}: ops imports only torch and the standard library"
        elif layer_of(here) < 0:
            yield f"{item}: the room {here!r} has no place in LAYERS"
        elif top != "ftengine" or item.when == "typing":
            continue
        elif there == OPS:
            if item.source != READS_OPS:
                yield f"{item}: strategies and fast paths import ops, the engine does not"
        elif layer_of(there) < 0:
            yield f"{item}: the room {there!r} has no place in LAYERS"
        elif there != here and layer_of(there) >= layer_of(here):
            yield f"{item}: {there} lies behind {here}"


def bench_faults(found: Iterable[Import]) -> Iterator[str]:
    """Say what the benchmarks load beyond torch and an engine that needs no more."""
    for item in found:
        top = item.target.split(".")[0]
        allowed = {*sys.stdlib_module_names, "torch", BENCH, *(["click"] if item.source == BENCH_COMMAND else [])}
        own = top == "ftengine" and room_of(item.target) in (OPS, "errors", "__init__")
        if item.when == "loading" and top not in allowed and not own:
            yield f"{item}: bench loads only torch, ops, errors and the standard library"


def circle(found: Iterable[Import], of: Callable[[str], str] = room_of) -> list[str]:
    """Return rooms (or what else a module belongs to) that import one another in a circle, or nothing."""
    graph: dict[str, set[str]] = {}
    for item in found:
        here, there = (of(module.removesuffix(".__init__")) for module in (item.source, item.target))
        if item.target.startswith("ftengine") and item.when != "typing" and here != there:
            graph.setdefault(here, set()).add(there)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def plugin_faults(found: Iterable[Import], offered: Mapping[str, str], own: Iterable[str]) -> Iterator[str]:
    """Say which imports of a plugin distribution, whose packages are `own`, reach for what is not public."""
    for item in found:
        top, *inner = item.target.split(".")
        private = item.name.startswith("_") and not item.name.endswith("__")
        if top == "ftengine":
            open_to_all = f"{item.target}.".startswith(tuple(f"{name}." for name in PUBLIC))
            module_is_public = not inner or item.target in FRONTS or open_to_all
            name_is_public = item.name in ("", *offered) if not inner else not private
            if not (module_is_public and name_is_public) or any(part.startswith("_") for part in inner):
                yield f"{item}: not public"
        elif top in own:
            if private:
                yield f"{item}: another module's private name"
        elif top == BOX and len(inner) == 1 and item.name:
            if item.name not in published(PLUGINS[BOX][f"{item.target}.__init__"]):
                yield f"{item}: not published"
        elif top.startswith("ftengine_"):
            yield f"{item}: plugins do not import one another"


def heavy_loads(found: Iterable[Import], start: str, heavy: tuple[str, ...] = HEAVY) -> list[str]:
    """Return how loading the module `start` comes to load something heavy, one chain of imports each."""
    loads: dict[str, list[Import]] = {}
    for item in found:
        if item.when == "loading":
            loads.setdefault(item.source, []).append(item)
    chains, seen, waiting = [], {start}, [(start, "")]
    while waiting:
        module, before = waiting.pop()
        for item in loads.get(module, ()):
            chain = f"{before}; {item}" if before else str(item)
            if f"{item.target}.".startswith(tuple(f"{name}." for name in heavy)):
                chains.append(chain)
            parts = item.target.split(".")
            parents = [".".join([*parts[:end], "__init__"]) for end in range(1, len(parts) + 1)]
            for loaded in {*parents, item.target} - seen:  # a.b loads a as well
                seen.add(loaded)
                waiting.append((loaded, chain))
    return chains


def plugin_distributions() -> dict[str, dict[str, str]]:
    """Return the modules of each distribution in plugins/: a hyphen folder holds packages, any other is one."""
    result: dict[str, dict[str, str]] = {}
    for folder in sorted(path.parent for path in (ROOT / "plugins").glob("**/ftengine_*/__init__.py")):
        distribution = folder.relative_to(ROOT / "plugins").parts[0]
        result.setdefault(distribution, {}).update(read_package(folder))
    return result


ENGINE = read_package(ROOT / "ftengine")
OFFERED = offered_names(ENGINE["ftengine.__init__"])
PLUGINS = plugin_distributions()


@cache
def everything() -> list[Import]:
    """Return what the engine and all plugins import."""
    return imports_of({**ENGINE, **{name: source for modules in PLUGINS.values() for name, source in modules.items()}})


def test_engine_imports_run_one_way() -> None:
    assert list(engine_faults(imports_of(ENGINE), OFFERED)) == []


def test_benchmarks_need_only_torch() -> None:
    assert list(bench_faults(imports_of(PLUGINS[BENCH], beside=ENGINE))) == []


NEWER = {
    *("typing.LiteralString", "typing.Never", "typing.NotRequired", "typing.Required", "typing.Self", "typing.Unpack"),
    *("typing.assert_never", "typing.assert_type", "typing.override", "enum.StrEnum", "datetime.UTC", "tomllib"),
    *("contextlib.chdir", "hashlib.file_digest", "itertools.batched", "asyncio.TaskGroup", "asyncio.timeout"),
}
"""What the standard library has since Python 3.11; `requires-python` allows 3.10."""


@pytest.mark.slow
def test_nothing_newer_than_the_oldest_python_is_imported() -> None:
    found = [item for item in everything() if item.when != "typing"]
    assert [str(item) for item in found if item.what in NEWER] == []


def test_rooms_do_not_import_one_another_in_a_circle() -> None:
    assert circle(imports_of(ENGINE)) == []


def test_no_file_imports_another_that_imports_it() -> None:
    """By whatever way round, in functions too; what is imported for types alone is never loaded."""
    assert circle(everything(), of=lambda module: module) == []


def test_contracts_import_errors_alone() -> None:
    own = [item for item in imports_of(ENGINE) if room_of(item.source) == "api" and item.when != "typing"]
    rooms = {room_of(item.target) for item in own if item.target.split(".")[0] == "ftengine"}
    assert rooms == {"api", "errors"}


def test_fast_paths_know_the_box_and_nothing_of_it_knows_them() -> None:
    """Not for types either: a strategy holds no slot for a path, and a task calls none."""
    found = [item for item in imports_of(PLUGINS[BOX]) if item.target.startswith(f"{BOX}.fast_paths")]
    assert [str(x) for x in found if not x.source.startswith((f"{BOX}.fast_paths", f"{BOX}.__init__"))] == []


@pytest.mark.parametrize("module", ["ftengine", "ftengine.plugins.hookspecs", *PUBLIC, *FRONTS])
def test_public_modules_say_what_is_public(module: str) -> None:
    found = import_module(module)
    assert sorted(set(found.__all__)) == sorted(found.__all__)
    beside = (
        {file.stem for file in Path(str(found.__file__)).parent.glob("*.py")} if hasattr(found, "__path__") else set()
    )
    assert beside & set(found.__all__) == set()  # importing such a module would put it in the place of the name
    homes = {getattr(getattr(found, name), "__module__", module) for name in found.__all__}
    assert {home.split(".")[0] for home in homes} <= {
        "ftengine",
        "builtins",
        "collections",
        "pluggy",
        "types",
        "typing",
    }, homes


@pytest.mark.parametrize("distribution", PLUGINS)
def test_plugins_import_only_public_names(distribution: str) -> None:
    modules = PLUGINS[distribution]
    own = {module.split(".")[0] for module in modules}
    assert list(plugin_faults(imports_of(modules, beside=ENGINE), OFFERED, own)) == []


QUICK_MODULES = [
    *(module for module in ENGINE if room_of(module) in QUICK),
    "ftengine.run.recipe",
    *(module for modules in PLUGINS.values() for module in modules if module.count(".") == 1 and "__init__" in module),
]


@pytest.mark.parametrize("module", QUICK_MODULES)
def test_what_answers_quickly_loads_nothing_heavy(module: str) -> None:
    assert heavy_loads(everything(), module) == []


@pytest.mark.parametrize(
    "kind", sorted(path.parent.name for path in (ROOT / "plugins/ftengine_builtins").glob("*/__init__.py"))
)
def test_lists_of_what_is_installed_load_no_modelling(kind: str) -> None:
    assert heavy_loads(everything(), f"ftengine_builtins.{kind}.__init__", MODELLING) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ftengine.errors", "import ftengine.api"),
        ("ftengine.errors", "from ftengine import fine_tune"),
        ("ftengine.api", "def later():\n    from ftengine.plugins.registry import Registry"),
        ("ftengine.plugins.hookspecs", "from ..run.directory import RunDirectory"),
        ("ftengine.data.batching", "from ..engine.fine_tune import Run"),
        ("ftengine.data.__init__", "from ftengine import cli"),
        ("ftengine.training.loop", "import importlib\nimportlib.import_module('ftengine.cli')"),
        ("ftengine.engine.fine_tune", "import ftengine_builtins"),
        ("ftengine.engine.fine_tune", "from ftengine.ops import lowrank_linear"),
        ("ftengine.ops.reference", "import numpy"),
        ("ftengine.ops.reference", "from ftengine.errors import InputError"),
        ("ftengine.cupboard", "import json"),
        ("ftengine.model.modes", "from ftengine.ops import active_backend"),
        ("ftengine.model.tokens", "from ftengine.chat import render"),
        ("ftengine.evaluation.runner", "from ftengine.training.losses import loss_of"),
        ("ftengine.training.loop", "from ftengine.evaluation import plan"),
        ("ftengine.engine.fine_tune", "from ftengine import cupboard"),
    ],
)
def test_a_planted_import_the_wrong_way_is_caught(module: str, source: str) -> None:
    planted = imports_of({module: source}, beside=[*ENGINE, "ftengine.cupboard"])
    assert len(list(engine_faults(planted, OFFERED))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from ftengine.engine import fine_tune",
        "from ftengine import recipe",
        "from ftengine import _HOMES",
        "from ftengine.api import _hidden",
        "import ftengine.ops._backend",
        "import ftengine.apiary",
        "from ftengine.evaluation.differences import compare",
        "from ftengine.data import cache",
        "from ftengine_builtins.strategies.full import Full",
        "from .layers import _hidden",
    ],
)
def test_a_planted_import_behind_the_public_names_is_caught(source: str) -> None:
    planted = imports_of({"ftengine_mine.strategy": source}, beside=ENGINE)
    assert len(list(plugin_faults(planted, OFFERED, {"ftengine_mine"}))) == 1
