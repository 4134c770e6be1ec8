"""The rooms of the house: imports run downward, in no circle; what runs needs no compiler."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import quantmm as qmm

ROOT = Path(qmm.__file__).parent

#: Rooms that may import the ones below them, and not each other where they stand side by side.
FLOORS = (
    ("cli",),
    ("nn",),
    ("models",),
    ("tuning",),
    ("bench",),
    ("compiler",),
    ("runtime",),
    ("schedules",),
    ("formats", "targets"),
    ("side_by_side",),
    ("cores", "files", "processes", "versions"),
    ("errors", "extras", "interrupt"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

#: Rooms that need TVM's compiler nowhere.
WITHOUT_TVM = ("formats", "models", "runtime")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for room in ("*.py", *(f"{room}/**/*.py" for room in FLOOR))
    for path in ROOT.glob(room)
}


def statements(path: Path) -> Iterator[ast.stmt]:
    """Every import, but those for type checkers alone."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        else:
            todo += ast.iter_child_nodes(node)


def imported(module: str) -> Iterator[str]:
    """Modules of quantmm that one imports, and the first names of others."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for statement in statements(path):
        if isinstance(statement, ast.Import):
            yield from (alias.name.split(".")[0] for alias in statement.names)
        elif not statement.level:
            yield (statement.module or "").split(".")[0]
        else:
            start = package[: len(package) + 1 - statement.level]
            base = ".".join([*start, *([statement.module] if statement.module else [])])
            for alias in statement.names:
                full = f"{base}.{alias.name}".lstrip(".")
                yield full if full in MODULES else base


IMPORTS = {module: {*imported(module)} & MODULES.keys() - {module} for module in MODULES}


def test_every_folder_of_the_product_is_a_room():
    tests = {"tests", "examples", "benchmarks", "docs", "build"}
    found = {path.parent.name for path in ROOT.glob("*/*.py")} | {p.stem for p in ROOT.glob("*.py")}
    assert found - tests - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {""}))
def test_imports_run_downward(module):
    room = module.split(".")[0]
    for other in IMPORTS[module]:
        below = other.split(".")[0]
        assert below == room or FLOOR.get(below, -1) > FLOOR[room], f"{module} imports {other}"


def test_no_circles():
    left = dict(IMPORTS)
    while free := [module for module, others in left.items() if not others & left.keys()]:
        for module in free:
            del left[module]
    assert not left


@pytest.mark.parametrize("room", WITHOUT_TVM)
def test_what_runs_needs_no_compiler(room):
    for module in MODULES:
        if module.split(".")[0] == room:
            assert "tvm" not in {*imported(module)}, module
