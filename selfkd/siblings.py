"""What a plug-in is made of: its own file, and those that it imports from the same folder."""

import ast
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path


def own_files(path: Path, package: str) -> list[Path]:
    """`path` and the files of its folder that it imports, directly or not, in order.

    They are read from the source alone, so that every process finds the same ones, imported yet or
    not. `package` is what the absolute names of the folder's modules begin with; empty for a file
    whose folder is on the path.
    """
    found: set[Path] = set()
    todo = [path]
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += _imported(file, path.parent, package)
    return sorted(found)


def _imported(file: Path, folder: Path, package: str) -> Iterator[Path]:
    tree = ast.Module([], [])
    with contextlib.suppress(SyntaxError, ValueError):  # whoever imports it is told
        tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(folder, _below(alias.name, package))
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1] if node.level else folder
            name = node.module or ""
            parts = _below(name, package) if not node.level else name.split(".") if name else []
            if parts is not None and base.is_relative_to(folder):
                for alias in node.names:
                    yield from _files(base, [*parts, alias.name])


def _below(name: str, package: str) -> list[str] | None:
    """The parts of a module's name below the folder; None for a module from elsewhere."""
    parts, above = name.split("."), package.split(".") if package else []
    if parts[: len(above)] != above:
        return None
    # A plug-in's folder is the last on the path: its files shadow no standard module.
    return None if not above and parts[0] in sys.stdlib_module_names else parts[len(above) :]


def _files(base: Path, parts: list[str] | None) -> Iterator[Path]:
    """Files of the module, and of the packages that it is in."""
    at = base
    for part in parts or ():
        at = at / part
        yield from (f for f in (at.with_name(f"{part}.py"), at / "__init__.py") if f.is_file())
