"""The house rules that code can check: imports point one way, functions are short, docstrings and types are plain."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from benchmarks import architecture
from benchmarks.architecture import PACKAGE, ROOMS, ROOT

LONGEST = 60  # lines of a function

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield architecture.module_name(path).removeprefix("megedit."), ast.parse(path.read_text("utf-8"))


def test_every_file_and_folder_is_a_room() -> None:
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert entries - {"__init__", "__main__"} == set(ROOMS)


def test_imports_point_one_way() -> None:
    """Those inside functions and for type checkers as well."""
    order = list(ROOMS)
    upward = [why for (a, b), why in architecture.imports().items() if order.index(b) > order.index(a)]
    assert upward == []


def test_the_map_shows_the_imports() -> None:
    drawn = architecture.PICTURE.read_text("utf-8")
    assert drawn == architecture.picture(), "run: python -m benchmarks.architecture"


def test_no_function_is_long() -> None:
    long = {
        f"{module}.{node.name}"
        for module, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, Function) and node.end_lineno is not None and node.end_lineno - node.lineno >= LONGEST
    }
    assert long == set()


def test_docstrings_are_plain() -> None:
    """They begin with an imperative or a noun, not with a relative clause."""
    unplain = {
        module
        for module, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, Function | ast.ClassDef | ast.Module)
        and (ast.get_docstring(node) or "").partition(" ")[0] in ("What", "How", "Whether")
    }
    assert unplain == set()


def test_names_to_choose_from_are_literals() -> None:
    enums = {
        module
        for module, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "enum"
    }
    assert enums == set()


def test_the_map_is_linked() -> None:
    assert "images/map.svg" in (ROOT / "docs" / "development.md").read_text("utf-8")
