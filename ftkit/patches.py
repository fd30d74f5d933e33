"""What one library has replaced in others, found by looking: functions that stand in one and whose code lies in another."""

import ast
import importlib.util
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import FunctionType, MethodType
from typing import Any

from ftkit.errors import MissingExtra


@dataclass(frozen=True)
class Patch:
    """A function under the name `where`, whose code was written elsewhere, in `code`."""

    where: str
    code: str


@dataclass(frozen=True)
class Patches:
    """All that was found; shows itself as a table, one row a module."""

    found: tuple[Patch, ...]

    def by_module(self) -> dict[str, int]:
        """How many functions are replaced in each module, most first."""
        return dict(Counter(_module(patch.where) for patch in self.found).most_common())

    def __len__(self) -> int:
        return len(self.found)

    def __str__(self) -> str:
        return "\n".join(f"{count:4}  {module}" for module, count in self.by_module().items())

    def _repr_html_(self) -> str:
        rows = []
        for module, count in self.by_module().items():
            names = [p.where.removeprefix(f"{module}.") for p in self.found if _module(p.where) == module]
            more = f" and {count - 3} more" if count > 3 else ""
            rows.append(f"<tr><td>{count}</td><td><code>{module}</code></td><td>{', '.join(names[:3])}{more}</td></tr>")
        head = "<tr><th>replaced</th><th>in</th><th>for example</th></tr>"
        return f"<table>{head}{''.join(rows)}</table>"


def find(by: str = "unsloth", libraries: tuple[str, ...] = ("transformers", "trl", "peft", "bitsandbytes")) -> Patches:
    """Functions, methods and whole classes in the loaded modules of `libraries` whose code was written by `by`.

    Code that is generated at run time counts when its file lies in a folder that bears the name, as
    `unsloth_compiled_cache` does.
    """
    found: dict[str, Patch] = {}
    for name, module in sorted(sys.modules.items()):
        if module is None or name.split(".")[0] not in libraries:
            continue
        for owner, attributes in _owners(name, dict(vars(module))):
            for attribute, value in attributes.items():
                if code := _code(value, by):
                    found.setdefault(f"{owner}.{attribute}", Patch(f"{owner}.{attribute}", code))
    return Patches(tuple(found.values()))


def find_on(model: Any, by: str = "unsloth") -> Patches:
    """Methods that were put on one model's own layers, or come with their class, and whose code was written by `by`."""
    found: dict[str, Patch] = {}
    for layer in model.modules():
        own = type(layer).__name__
        for attribute, value in [("forward", vars(type(layer)).get("forward")), *vars(layer).items()]:
            if code := _code(value, by):
                found.setdefault(f"{own}.{attribute}", Patch(f"{own}.{attribute}", code))
    return Patches(tuple(found.values()))


def written(file: str = "models/llama.py", package: str = "unsloth") -> Patches:
    """What a file of an installed package would put on other libraries' classes, read from its text without running it.

    Shows what waits for another machine: lines `Class.method = function`, where they stand.

    Raises:
        MissingExtra: the package is not installed.
    """
    found: dict[str, Patch] = {}
    tree = ast.parse(_source(package, file))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Attribute)
            and _gives_a_function(node.value)
        ):
            where = ast.unparse(node.targets[0])
            if re.search(r"\b[A-Z]\w+\.[a-z]\w+$", where) and where.split(".")[-2] not in own:
                found.setdefault(where, Patch(where, f"{package}/{file}:{ast.unparse(node.value)}"))
    return Patches(tuple(found.values()))


def families(file: str = "models/mapper.py", package: str = "unsloth") -> dict[str, int]:
    """Model families in Unsloth's own list of 4-bit repositories, by the first word of their names, most first.

    Raises:
        MissingExtra: the package is not installed.
    """
    tables = [
        ast.literal_eval(node.value)
        for node in ast.parse(_source(package, file)).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    ]
    names = (repository.split("/")[-1] for table in tables for repository in table)
    words = (re.match(r"(?:meta-)?([a-z]+)", name.lower()) for name in names)
    return dict(Counter(word.group(1) for word in words if word).most_common())


def _source(package: str, file: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingExtra(f"{package} is not installed, so its files cannot be read. Run: make install.")
    return (Path(spec.origin).parent / file).read_text(encoding="utf-8")


def _gives_a_function(node: ast.expr) -> bool:
    """A function's name, or a call that makes one."""
    return isinstance(node, ast.Name | ast.Call)


def _owners(name: str, top: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The module, and its own classes with those below them; what a module only re-exports would count twice."""
    classes = [
        (key, base)
        for key, value in top.items()
        if issubclass(type(value), type) and value.__module__ == name
        for base in value.__mro__
        if base.__module__ == name
    ]
    return [(name, top), *((f"{name}.{key}", dict(vars(base))) for key, base in classes)]


def _code(value: Any, by: str) -> str:
    """Where the code of a function or class lies if `by` wrote it, else empty."""
    if issubclass(type(value), type):
        home = str(value.__module__)
        return f"{home}:{value.__name__}" if _is(home.split(".")[0], by) else ""
    return next((origin for function in _functions(value) if (origin := _origin(function, by))), "")


def _functions(value: Any) -> Iterator[FunctionType]:
    """The function itself and those that it wraps; types are asked, since lazy modules import when an attribute is."""
    if type(value) in (staticmethod, classmethod, MethodType):
        value = value.__func__
    elif type(value) is property:
        value = value.fget
    while type(value) is FunctionType:
        yield value
        value = vars(value).get("__wrapped__")


def _origin(function: FunctionType, by: str) -> str:
    """`file:name` where the code lies in a package or folder `by` or `by_…`, else empty."""
    file = function.__code__.co_filename.replace("\\", "/").rsplit("site-packages/", 1)[-1]
    parts = PurePath(file).parts
    places = [i for i, part in enumerate(parts[:-1]) if _is(part, by)]
    return f"{'/'.join(parts[places[-1] :])}:{function.__name__}" if places else ""


def _is(package: str, by: str) -> bool:
    return package == by or package.startswith(f"{by}_")


def _module(where: str) -> str:
    """The loaded module that a place is in: the longest beginning of its name that is one."""
    parts = where.split(".")
    names = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
    return next((name for name in names if name in sys.modules), parts[0])
