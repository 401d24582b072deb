"""`ftengine plugins new`: a distribution to start from, written from the templates beside this module.

A template is a text with the files of one kind of component, each begun by a line `=== PATH`; `$NAME` is replaced.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from string import Template

import click

from ftengine.cli.options import PATH
from ftengine.errors import InputError, did_you_mean
from ftengine.text import printable

TEMPLATES = Path(__file__).parent / "templates"
COMMON = "distribution"
"""The template of the files that every distribution has."""

OTHERS = {"preference-loss": "task", "command": ""}
"""Templates that are not named after a kind of component, with the kind that each makes; "" for a command."""

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST_NAME = 50

HOOK = """

@hookimpl
def {hook}() -> list[type]:
    \"\"\"Return {what}; {pronoun} imported when this hook is called.\"\"\"
{imports}

    return [{classes}]
"""


def templates() -> list[str]:
    """Return the names of the templates: the kinds of components, and those in OTHERS."""
    return sorted(file.stem for file in TEMPLATES.glob("*.txt") if file.stem != COMMON)


def kinds() -> list[str]:
    """Return the kinds of components."""
    return [kind for kind in templates() if kind not in OTHERS]


def complete_kinds(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete kinds of components."""
    return [kind for kind in kinds() if kind.startswith(incomplete)]


def complete_templates(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the names of templates."""
    return [name for name in templates() if name.startswith(incomplete)]


@click.command("new")
@click.argument("name")
@click.option(
    "--kind",
    "chosen",
    metavar="KIND[=NAME]",
    shell_complete=complete_templates,
    multiple=True,
    required=True,
    help=f"What it offers: {', '.join(templates())}; named NAME, or as given after =; may be repeated.",
)
@click.option("--output", metavar="DIR", type=PATH, help="The folder to write; by default ftengine-NAME.")
def new(name: str, chosen: Sequence[str], output: str | None) -> None:
    """Write a distribution `ftengine-NAME` with a small component or command that works, its tests and a CI file.

    \b
    Examples:
      ftengine plugins new bitfit --kind strategy
      ftengine plugins new clinic --kind evaluator=sensitivity --kind augmenter=abbreviate
    """
    from ftengine.run.directory import writing

    name = name.removeprefix("ftengine-")
    names = [(kind, own or name) for kind, _, own in (option.partition("=") for option in dict.fromkeys(chosen))]
    offered = Counter((OTHERS.get(kind) or kind, own) for kind, own in names)
    if twice := next((component for component, times in offered.items() if times > 1), None):
        raise InputError(
            f"--kind names the {twice[0]} {twice[1]!r} twice. Give the second another name: --kind {twice[0]}=NAME."
        )
    _check(name, names)
    folder = Path(output or f"ftengine-{name}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{str(folder)!r} exists and is not empty. Name another folder with --output.")
    files = distribution(name, names)
    with writing(folder):
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    place = str(folder) if folder.is_absolute() else f"./{folder}"
    click.echo(printable(f"wrote {len(files)} files to {folder}. Next:"))
    for line in (
        f"pip install -e {shlex.quote(f'{place}[test]')}",
        f"python -m pytest {shlex.quote(str(folder))}",
        f"ftengine plugins check ftengine-{name}",
    ):
        click.echo(printable(f"  {line}"))


def distribution(name: str, chosen: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the files of a distribution by path, for a name without "ftengine-" and (template, name) pairs."""
    from ftengine import __version__
    from ftengine.plugins.registry import article

    package = f"ftengine_{name.replace('-', '_')}"
    files: dict[str, str] = {}
    classes: dict[str, list[tuple[str, str]]] = {}
    offers, uses, summaries, commands = [], [], [], []
    for template, own in chosen:
        kind = OTHERS.get(template, template)
        is_only = [other for other, _ in chosen].count(template) == 1
        module = (template if is_only else f"{own}-{template}").replace("-", "_")
        cls = "".join(part.capitalize() for part in f"{own}-{template}".split("-"))
        words = {"name": own, "package": package, "module": module, "class": cls, "variable": own.replace("-", "_")}
        files |= _filled(template, words)
        made = f"{words['variable']}_command" if not kind else cls if kind == template else f"{cls}Task"
        summaries.append(_summary(files[f"{package}/{module}.py"], made))
        offers.append(f"- {article(template)} {template.replace('-', ' ')}, `{own}`: {summaries[-1]}")
        if kind:
            classes.setdefault(kind, []).append((module, made))
        else:
            commands.append(f'{own} = "{package}.{module}:{made}"')
        uses.append(_use(kind, own))
    groups = {"ftengine": [f'{name} = "{package}"'] if classes else [], '"ftengine.commands"': commands}
    (template, own), more = chosen[0], len(chosen) > 1
    shown = f"plugins show {own}" if OTHERS.get(template, template) else f"{own} --help"
    common = {
        "distribution": f"ftengine-{name}",
        "package": package,
        "version": __version__,
        "summary": f"Components of ftengine: {', '.join(dict(chosen))}." if more else summaries[0],
        "offers": "\n".join(offers),
        "shown": "plugins show NAME --kind KIND" if more else shown,
        "uses": "\n".join(dict.fromkeys(uses)),
        "entry_points": "\n\n".join(
            "\n".join([f"[project.entry-points.{group}]", *lines]) for group, lines in groups.items() if lines
        ),
        "hooks": "".join(["\nfrom ftengine import hookimpl\n"] * bool(classes))
        + "".join(_hook(package, kind, names) for kind, names in classes.items()).rstrip("\n"),
    }
    return {**_filled(COMMON, common), **files}


def _use(kind: str, name: str) -> str:
    """Return a command line that uses a component of a kind; kind "" is a command."""
    from ftengine.plugins.registry import RECIPE_KEYS

    if kind in ("", "exporter"):
        return f"ftengine export RUN --to {name} OUT" if kind else f"ftengine {name} RUN"
    # Components of a kind that has no key in the recipe are used in every run.
    key = RECIPE_KEYS.get(kind)
    return f"ftengine train recipe.yaml --set {key}={name}" if key else "ftengine train recipe.yaml"


def _hook(package: str, kind: str, classes: Sequence[tuple[str, str]]) -> str:
    """Return the source of the hook for a kind, for (module, class) pairs."""
    from ftengine.plugins.registry import KINDS

    single = len(classes) == 1
    return HOOK.format(
        hook=KINDS[kind][1],
        what="the class" if single else "the classes",
        pronoun="it is" if single else "they are",
        imports="\n".join(f"    from {package}.{module} import {cls}" for module, cls in classes),
        classes=", ".join(cls for _, cls in classes),
    )


def _check(name: str, chosen: Sequence[tuple[str, str]]) -> None:
    """Refuse a malformed name, one that is taken, and a kind that does not exist (InputError)."""
    from ftengine.cli import main
    from ftengine.plugins.registry import Registry, article

    for kind, _ in chosen:
        if kind not in templates():
            near = did_you_mean(kind, templates())
            raise InputError(f"--kind {kind!r}: no such template. Templates: {', '.join(templates())}.{near}")
    for candidate in (name, *(own for _, own in chosen)):
        if len(candidate) > LONGEST_NAME or not NAME.fullmatch(candidate):
            raise InputError(
                f"{candidate!r} cannot name a plugin. Begin with a letter and write small letters a to z, digits and "
                f"single hyphens, at most {LONGEST_NAME} characters, such as layer-drop."
            )
    distribution, module = f"ftengine-{name}", f"ftengine_{name.replace('-', '_')}"
    if find_spec(module) is not None:
        raise InputError(f"a module {module} is installed already. Choose another name, or uninstall {distribution}.")
    registry = Registry()
    for template, own in chosen:
        kind = OTHERS.get(template, template)
        if not kind and own in (*main.builtin, *main.external):
            raise InputError(f"a command named {own!r} exists already. Choose another name.")
        for entry in registry.entries(kind) if kind else ():
            if entry.name == own:
                what = f"{article(kind)} {kind} named {own!r}"
                raise InputError(f"{what} exists already (in {entry.origin}). Choose another name.")


def _filled(template: str, words: dict[str, str]) -> dict[str, str]:
    """Return a template's files by path, with each $NAME replaced."""
    text = Template((TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")).substitute(words)
    parts = (part.partition("\n") for part in re.split(r"^=== ", text, flags=re.MULTILINE)[1:])
    return {path: content for path, _, content in parts}


def _summary(source: str, made: str) -> str:
    """Return the first line of a class's or function's docstring."""
    return source.partition(f" {made}(")[2].partition('"""')[2].partition("\n")[0].removesuffix('"""')
