"""Figures on the structure of the code: long files and functions, loose files, import circles, exceptions, branches.

    python tools/structure.py [ROOT]        ROOT is a checkout, this one by default

Reads the files only; nothing of ROOT is imported. `make lint` prints the table as information: no figure fails it.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
LOOSE_IS_FINE = frozenset({"__init__.py", "errors.py"})
DEVICE_BRANCH = re.compile(r"\b_?is_on_gpu\b|\.is_cuda\b|device\.type\b|\.type [!=]= \"(?:cuda|cpu)\"")


def main(root: Path) -> None:
    package = root / "plugserve"
    files = {path: path.read_text() for path in sorted(package.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in files.items()}
    kernels = {path for path in files if "kernels" in path.as_posix()}
    rows = [
        (f"files over {MAX_FILE_LINES} lines", long_files(files)),
        (f"functions over {MAX_FUNCTION_LINES} lines outside kernels", long_functions(trees, kernels)),
        ("loose files in core/ and server/", loose_files(package)),
        ("import circles", import_circles(package, trees)),
        ("exceptions from import rules", rule_exceptions(root)),
        ("branches on the device's type", device_branches(files)),
    ]
    print(f"{len(files)} files, {sum(map(count_lines, files.values()))} lines")
    for name, found in rows:
        print(f"{len(found):4}  {name}")
        for line in found:
            print(f"        {line.replace(f'{root}/', '')}")


def count_lines(text: str) -> int:
    return text.count("\n")


def long_files(files: dict[Path, str]) -> list[str]:
    return [f"{path}: {count_lines(text)}" for path, text in files.items() if count_lines(text) > MAX_FILE_LINES]


def long_functions(trees: dict[Path, ast.Module], kernels: set[Path]) -> list[str]:
    return [
        f"{path}:{node.lineno} {node.name}: {size}"
        for path, tree in trees.items()
        if path not in kernels
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (size := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


def loose_files(package: Path) -> list[str]:
    folders = (package / "core", package / "server")
    return [str(path) for folder in folders for path in folder.glob("*.py") if path.name not in LOOSE_IS_FINE]


def import_circles(package: Path, trees: dict[Path, ast.Module]) -> list[str]:
    """Circles of imports, those inside functions included: as many as imports have to go until none is left."""
    modules = {module_name(package, path): path for path in trees}
    graph = {
        name: {found for found in imported(trees[path]) if found in modules and found != name}
        for name, path in modules.items()
    }
    circles: list[str] = []
    while circle := first_circle(graph):
        circles.append(" -> ".join(circle))
        graph[circle[0]].discard(circle[1])
    return circles


def first_circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import the next one in the list; the last is the first again. Empty without a circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle[::-1]
    return []


def module_name(package: Path, path: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.Module) -> Iterator[str]:
    """Modules, and names that may be modules, that tree imports when it runs: not those under TYPE_CHECKING."""
    for node in running_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from running_nodes(child)


def rule_exceptions(root: Path) -> list[str]:
    """ignore_imports of the import rules in pyproject.toml."""
    with (root / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    return [line for contract in contracts for line in contract.get("ignore_imports", [])]


def device_branches(files: dict[Path, str]) -> list[str]:
    """Lines of code that ask for the device's type."""
    return [
        f"{path}:{number} {line.strip()}"
        for path, text in files.items()
        for number, line in enumerate(text.splitlines(), 1)
        if DEVICE_BRANCH.search(line)
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve())
