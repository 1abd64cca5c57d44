"""The style guide as a test: who may import whom, how long things may be, nothing unsafe, no dead
links in the package, no unfinished work."""

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("proto", "compression", "gossip", "consensus", "training", "serving", "node")
ALLOWED = {
    "proto": {"proto"},
    "compression": set(),
    "gossip": {"compression"},
    "consensus": set(),
    "training": set(),
    "serving": set(),
    "node": {"proto", "compression", "gossip", "consensus", "training", "serving"},
}
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400
# Files that may see protobuf's generated classes: the translation layer and the two ends.
PROTO_USERS = {
    "node/wire.py",
    "node/liveness_wire.py",
    "node/server.py",
    "node/backend.py",
    "node/bulk.py",
    "node/bulk_wire.py",
    "node/links.py",
    "node/inspect_servicer.py",
    "node/text_servicer.py",
    "node/look_back.py",
    "node/look_wire.py",
    "node/strict.py",
    "node/channels.py",
    "node/status.py",
    "node/explain.py",
    "node/join.py",
    "node/operator.py",
    "node/inspect_client.py",
    "node/views.py",
    "node/demo.py",
    "node/handover.py",
}
UNSAFE_NAMES = {"eval", "exec", "compile", "__import__"}
# Functions that turn what was read into code, by their last two names.
UNSAFE_CALLS = {
    "builtins.eval",
    "builtins.exec",
    "jit.load",
    "np.load",
    "numpy.load",
    "pandas.read_pickle",
    "runpy.run_path",
    "serialization.load",
    "torch.load",
    "torch.save",
    "yaml.full_load",
    "yaml.load",
    "yaml.unsafe_load",
}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "dbm"}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "_pb2" not in path.name and ".venv" not in path.parts:
                yield path


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole module path"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def folder_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "shoal" and len(parts) > 1 and parts[1] in FOLDERS else None


ALL_SOURCES = [*sources(*FOLDERS)]
EVERYTHING = [*ALL_SOURCES, *sources("tests", "benchmarks", "scripts", "examples")]


@pytest.mark.parametrize("path", ALL_SOURCES, ids=relative)
def test_imports_point_one_way(path: Path) -> None:
    folder = relative(path).split("/")[0]
    for module in imported_modules(ast.parse(path.read_text())):
        target = folder_of(module)
        if target is not None and target != folder:
            assert target in ALLOWED[folder], f"{relative(path)} may not import {module}"
        if target == "proto":
            assert relative(path) in PROTO_USERS, f"{relative(path)} may not see protobuf"


@pytest.mark.parametrize("path", [*sources("consensus")], ids=relative)
def test_consensus_needs_only_the_standard_library(path: Path) -> None:
    for module in imported_modules(ast.parse(path.read_text())):
        top = module.split(".")[0]
        assert top == "shoal" or top in sys.stdlib_module_names, f"{module} is not in the library"


@pytest.mark.parametrize("path", [*(ROOT / "node").glob("verify*.py")], ids=relative)
def test_the_second_opinion_is_independent_of_the_first(path: Path) -> None:
    allowed = {"cryptography", "numpy", *sys.stdlib_module_names}
    network = {"socket", "ssl", "http", "urllib", "asyncio"}
    for module in imported_modules(ast.parse(path.read_text())):
        if module.startswith("shoal"):
            assert module.startswith(("shoal.node.errors", "shoal.node.verify")), module
        else:
            assert module.split(".")[0] in allowed - network, module


@pytest.mark.parametrize("path", [*sources("compression", "gossip", "consensus")], ids=relative)
def test_the_cores_have_no_clock_no_chance_and_no_io(path: Path) -> None:
    banned = {"time", "random", "secrets", "asyncio", "socket", "os", "pathlib", "datetime"}
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                # `random.Random` as the type of an argument is how chance comes in.
                assert alias.name not in banned - {"random"}, f"{alias.name} in {relative(path)}"
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "") not in banned - {"random"}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id == "random":
                raise AssertionError(f"global randomness in {relative(path)}:{node.lineno}")


@pytest.mark.parametrize("path", EVERYTHING, ids=relative)
def test_nothing_is_too_long(path: Path) -> None:
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= FILE_LINES_MAX, f"{relative(path)} has {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, (
                f"{relative(path)}:{node.lineno} {node.name} has {length} lines"
            )


def unsafe(tree: ast.AST) -> Iterator[str]:
    """What in this file could run code that came from outside."""
    for module in imported_modules(tree):
        if module.split(".")[0] in UNSAFE_MODULES or module in UNSAFE_CALLS:
            yield f"import {module}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        names = ast.unparse(node.func).split(".")
        if names[0] in UNSAFE_NAMES and len(names) == 1:
            yield names[0]
        if ".".join(names[-2:]) in UNSAFE_CALLS:
            yield ".".join(names)
        if any(word.arg == "allow_pickle" for word in node.keywords):
            yield "allow_pickle"


@pytest.mark.parametrize("path", EVERYTHING, ids=relative)
def test_nothing_runs_code_that_came_from_outside(path: Path) -> None:
    assert not list(unsafe(ast.parse(path.read_text()))), relative(path)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import marshal",
        "import shelve",
        "from torch import load",
        "torch.load(path, weights_only=True)",
        "torch.jit.load(path)",
        "np.load(path)",
        "read(path, allow_pickle=True)",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
        "compile(text, '', 'exec')",
    ],
)
def test_the_check_for_that_sees_it(line: str) -> None:
    assert list(unsafe(ast.parse(line)))


@pytest.mark.parametrize("path", EVERYTHING, ids=relative)
def test_every_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{relative(path)} has no docstring"


@pytest.mark.parametrize("path", ALL_SOURCES, ids=relative)
def test_public_functions_are_documented(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
            assert ast.get_docstring(node), f"{relative(path)}: {node.name} says nothing"


@pytest.mark.parametrize("path", EVERYTHING, ids=relative)
def test_no_work_is_left_for_later(path: Path) -> None:
    if path.name == "test_tidy.py":
        return
    found = re.search(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b", path.read_text())
    assert not found, f"{found and found[0]} in {relative(path)}"


def test_the_package_is_links_to_the_root_folders() -> None:
    for folder in FOLDERS:
        link = ROOT / "src" / "shoal" / folder
        assert link.is_symlink()
        assert os.readlink(link) == f"../../{folder}"
        # A regular package named `compression` would hide the standard library's (3.14).
        assert not (ROOT / folder / "__init__.py").exists()


def test_no_folder_hides_a_module_of_the_standard_library() -> None:
    shadows = {"gzip.py", "zlib.py", "bz2.py", "lzma.py", "zstd.py"}
    assert not shadows & {path.name for path in (ROOT / "compression").iterdir()}
