"""The shape of the code, as a test: imports go one way, torch stays in the engine, files stay small."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "prefixlab"
MAX_CODE_LINES = 400
MAX_FOLDER_FILES = 12

# Who may import whom (ARCHITECTURE.md). A folder may always import itself.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "cache": {"core"},
    "scheduler": {"core", "cache"},
    "engine": {"core"},
    "server": {"core", "cache", "scheduler"},
    "router": {"core"},
    "bench": {"core"},
    "profiler": {"core", "bench"},
    "simulator": {"core", "cache", "scheduler", "router", "bench", "profiler"},
    "cli": {"core", "cache", "scheduler", "engine", "server", "router", "bench", "profiler", "simulator"},
}
# The composition roots: one file of a folder that may import more than the folder.
EXTRA: dict[str, set[str]] = {
    "engine/llm.py": {"cache", "scheduler"},
}
CORE_THIRD_PARTY = {"msgspec", "numpy", "xxhash"}
MAY_USE_TIME = {"core/clock.py", "bench/calibrate/metronome.py", "bench/loadgen/sockets/stamps.py"}


def source_files() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


def imported_modules(path: Path) -> list[str]:
    """Every module named by an import anywhere in the file (inside functions and TYPE_CHECKING too)."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: a relative import hides its layer"
            modules.append(node.module or "")
            if node.module == "prefixlab":
                modules += [f"prefixlab.{alias.name}" for alias in node.names]
    return modules


def code_lines(text: str) -> int:
    """Lines holding a token that is neither comment nor docstring."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    skip = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skip:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


@pytest.mark.parametrize("path", source_files(), ids=relative)
def test_a_file_imports_only_what_its_layer_may(path: Path) -> None:
    name = relative(path)
    if "/" not in name:
        return  # the package's own __init__ is checked by the torch test
    folder = name.split("/")[0]
    allowed = MAY_IMPORT[folder] | EXTRA.get(name, set()) | {folder}
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] == "prefixlab" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] in allowed, f"{name} imports {module}: {folder} may import only {sorted(allowed)}"
        if parts[0] == "torch":
            assert folder == "engine", f"{name} imports torch; only engine/ may"
        if parts[0] == "time":
            assert name in MAY_USE_TIME, f"{name} imports time; take a Clock instead"
        if folder == "core" and parts[0] != "prefixlab":
            known = parts[0] in sys.stdlib_module_names or parts[0] in CORE_THIRD_PARTY
            assert known, f"{name} imports {module}: core's list of libraries is closed"


@pytest.mark.parametrize("path", source_files(), ids=relative)
def test_a_file_is_small_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert code_lines(text) <= MAX_CODE_LINES, f"{relative(path)}: split it by idea"
    assert ast.get_docstring(ast.parse(text)), f"{relative(path)} has no docstring saying what it owns"


def test_a_folder_holds_few_files() -> None:
    for folder in {path.parent for path in source_files()}:
        count = sum(1 for path in folder.glob("*.py") if path.name != "__init__.py")
        if relative(folder) != "cli":
            assert count <= MAX_FOLDER_FILES, f"{relative(folder)}: {count} files; make sub-folders by idea"


def test_nothing_but_the_engine_loads_torch() -> None:
    modules = []
    for path in source_files():
        name = relative(path)
        if name.startswith("engine/") and name != "engine/__init__.py":
            continue
        module = "prefixlab." + name.removesuffix(".py").replace("/", ".")
        modules.append(module.removesuffix(".__init__"))
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


def test_every_folder_of_the_package_is_in_the_table() -> None:
    folders = {path.name for path in SRC.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(MAY_IMPORT)


def test_every_test_file_holds_a_test() -> None:
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        names = [
            node.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        stateful = "TestCase" in path.read_text()
        assert stateful or any(name.startswith("test_") for name in names), f"{path} collects nothing"
