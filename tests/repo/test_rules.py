"""Rules of this repository that no other tool holds: imports between packages, sizes, TODOs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "server" / "tenuto"
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 450
# From each part of the package to the parts it may import: `engine.types` is one module of many.
ARROWS = {
    "api": {"generation", "models", "access", "observe", "wire", "engine.types", "errors"},
    "generation": {"wire", "engine.base", "engine.types", "errors"},
    "models": {"engine.base", "engine.types", "errors"},
    "engine": {"errors"},
    "wire": {"errors"},
    "access": {"errors"},
    "observe": {"engine.types", "errors"},
    "errors": set(),
    "settings": {"wire.bounds"},
    "conformance": set(),
    "bench": set(),
}
# These wire everything together, and nothing imports them.
WIRING = {"app", "cli", "reload", "serving", "slow_senders", "wiring"}
HEAVY = {"vllm", "torch", "ray"}
HEAVY_FILES = re.compile(r"engine/(vllm\w*|preload|quantize|ray|ray_router)\.py")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever in the file, with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import"
            yield str(node.module), node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_module(dotted: str) -> bool:
    path = ROOT / "server" / Path(*dotted.split("."))
    return path.with_suffix(".py").is_file()


def allowed(target: str, part: str) -> bool:
    arrows = ARROWS[part] | {part}
    return any(target == arrow or target.startswith(f"{arrow}.") for arrow in arrows)


@pytest.mark.parametrize("path", sources("server/tenuto"), ids=name_of)
def test_import_arrows(path: Path) -> None:
    part = part_of(path)
    if part in WIRING | {"__init__", "demo"}:
        return
    ours = {
        name.removeprefix("tenuto."): line
        for name, line in imported(path)
        if name.startswith("tenuto.") and is_module(name)
    }
    wrong = [
        f"line {line}: {part} -> {target}"
        for target, line in ours.items()
        if not allowed(target, part)
    ]
    assert not wrong


def test_every_part_has_its_arrows() -> None:
    parts = {part_of(path) for path in sources("server/tenuto")}
    assert parts <= ARROWS.keys() | WIRING | {"__init__", "demo"}


@pytest.mark.parametrize("path", sources("server/tenuto"), ids=name_of)
def test_what_is_heavy_is_imported_in_the_engine_alone(path: Path) -> None:
    if HEAVY_FILES.fullmatch(path.relative_to(PACKAGE).as_posix()):
        return
    heavy = [line for name, line in imported(path) if name.split(".")[0] in HEAVY]
    assert not heavy


def test_the_fast_tests_import_nothing_heavy() -> None:
    apart = ("tests/live/", "tests/gpu/", "tests/cluster/", "tests/clients/scripts/")
    paths = [path for path in sources("tests") if not name_of(path).startswith(apart)]
    assert not [
        name_of(path)
        for path in paths
        if any(name.split(".")[0] in HEAVY for name, _ in imported(path))
    ]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", sources("server", "scripts", "tests"), ids=name_of)
def test_sizes(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    long = [
        f"{function.name}: {lines} lines"
        for function in functions(path)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long


def test_every_todo_names_its_issue() -> None:
    todo = re.compile(r"\b(TODO|FIXME|XXX)\b(?!\(#\d+\))")
    texts = [*sources("server", "scripts"), *(ROOT / "docs").rglob("*.md")]
    assert not [name_of(path) for path in texts if todo.search(path.read_text())]


@pytest.mark.parametrize("path", sources("server/tenuto"), ids=name_of)
def test_every_module_says_what_it_owns(path: Path) -> None:
    text = path.read_text()
    assert path.name == "__init__.py" or ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("code", ["import tenuto.cli", "import tenuto.app, tenuto.engine.fake"])
def test_the_server_can_be_imported_without_what_is_heavy(code: str) -> None:
    check = f"import sys; {code}; assert not {HEAVY!r} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
