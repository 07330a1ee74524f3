"""The form of the code: sizes, names of files, docstrings, no `.get` on configs."""

import ast
import pathlib

import pytest

PROJECT = pathlib.Path(__file__).resolve().parent.parent
PLACES = ("vla_jax", "configs", "launch", "tools", "benchmarks", "tests")
FILE, CONFIG, FUNCTION, ROAD = 400, 120, 60, 120
# rows of names, and what is expected of each: no limit of lines
TABLES = ("vla_jax/data/standardizers/", "tests/data/standardizers/")
# Straight roads with section comments, and table-like layouts.
ROADS = {
    ("vla_jax/train/loop.py", "run"),
    ("vla_jax/models/vla.py", "__call__"),
}
BANNED_NAMES = ("utils", "util", "common", "helpers", "misc")
CONFIG_NAMES = ("config", "cfg", "configs")


def violations(path: str, source: str) -> list[str]:
    """What is wrong with the form of one file (path from the project's root)."""
    tree, found = ast.parse(source), []
    lines, limit = len(source.splitlines()), CONFIG if path.startswith("configs/") else FILE
    if lines > limit and not path.startswith(TABLES):
        found.append(f"{path}: {lines} lines, at most {limit}")
    for part in pathlib.PurePosixPath(path).with_suffix("").parts:
        if part.strip("_") in BANNED_NAMES:
            found.append(f"{path}: {part!r} says nothing; name it for what is in it")
    if not path.startswith("tests/") and source.strip() and not ast.get_docstring(tree):
        found.append(f"{path}: no module docstring")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            limit = ROAD if (path, node.name) in ROADS else FUNCTION
            if length > limit:
                found.append(f"{path}: {node.name} has {length} lines, at most {limit}")
        if _gets_from_config(node):
            found.append(f"{path}:{node.lineno}: .get on a config; defaults live in its schema")
    return found


def _gets_from_config(node: ast.AST) -> bool:
    """Whether the node is `config.get(…)`, `self.config.x.get(…)` or `getattr(config, …, x)`."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name):
        with_default = node.func.id == "getattr" and len(node.args) == 3
        return with_default and bool(_names(node.args[0]) & set(CONFIG_NAMES))
    if isinstance(node.func, ast.Attribute) and node.func.attr == "get":
        return bool(_names(node.func.value) & set(CONFIG_NAMES))
    return False


def _names(node: ast.AST) -> set[str]:
    """The names of an attribute chain: {"self", "config", "optim"} of self.config.optim."""
    names = set()
    while isinstance(node, ast.Attribute):
        names.add(node.attr)
        node = node.value
    return names | ({node.id} if isinstance(node, ast.Name) else set())


def test_form():
    found = []
    for place in PLACES:
        for file in sorted((PROJECT / place).rglob("*.py")):
            found += violations(file.relative_to(PROJECT).as_posix(), file.read_text())
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "path, source, message",
    [
        ("vla_jax/nn/trunk.py", '"""Doc."""\n' + "x = 1\n" * 400, "401 lines, at most 400"),
        ("configs/a.py", '"""Doc."""\n' + "x = 1\n" * 120, "at most 120"),
        ("vla_jax/nn/utils.py", '"""Doc."""', "'utils' says nothing"),
        ("vla_jax/common/x.py", '"""Doc."""', "'common' says nothing"),
        ("vla_jax/heads/_helpers.py", '"""Doc."""', "'_helpers' says nothing"),
        ("vla_jax/nn/trunk.py", "x = 1", "no module docstring"),
        ("vla_jax/nn/trunk.py", '"""Doc."""\ndef f():\n' + "  x = 1\n" * 60, "f has 61 lines"),
        ("vla_jax/train/loop.py", '"""Doc."""\ndef run():\n' + "  x = 1\n" * 120, "at most 120"),
        ("vla_jax/a.py", '"""Doc."""\nx = config.get("lr", 1)', ".get on a config"),
        ("vla_jax/a.py", '"""Doc."""\nx = self.config.optim.get("lr")', ".get on a config"),
        ("vla_jax/a.py", '"""Doc."""\nx = getattr(config, "lr", 1)', ".get on a config"),
    ],
)
def test_the_test_can_fail(path, source, message):
    assert any(message in line for line in violations(path, source))


def test_what_is_allowed_passes():
    source = '"""Doc."""\nx = {}.get("a")\ndef run():\n' + "  x = 1\n" * 100
    assert violations("vla_jax/train/loop.py", source) == []
    assert violations("vla_jax/data/standardizers/oxe.py", '"""Doc."""\n' + "x = 1\n" * 900) == []
    assert violations("vla_jax/assets/__init__.py", "") == []
