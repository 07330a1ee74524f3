"""The vocabulary of GLOSSARY.md, held over public names of functions, arguments and fields.

Importers, data sources, standardizer tables and wire code speak other people's languages and are
left out. A name is compared word by word: `chunk_size` holds the words chunk and size.
"""

import ast
import pathlib
import re

import pytest

PROJECT = pathlib.Path(__file__).resolve().parent.parent
# (words, what to say instead, folders where the word has a meaning of its own)
FORBIDDEN = (
    ("robot_type", "embodiment, action_space or dataset_key", ()),
    ("domain", "embodiment, action_space or dataset_key", ()),
    ("traj", "episode", ()),
    ("trajectory", "episode", ()),
    ("trajectories", "episodes", ()),
    ("state", "observation", ("train/", "envs/", "evals/", "parallel/")),
    (r"image_\d+", "a view: primary, secondary, wrist, left_wrist, right_wrist", ()),
    (r"cam_\w+", "a view: primary, secondary, wrist, left_wrist, right_wrist", ()),
    ("prompt", "task", ("tokenizers/",)),
    (r"(?<!action_)horizon", "window (past) or action_horizon (future)", ()),
    ("history_len", "window", ()),
    ("pred_horizon", "action_horizon", ()),
    ("n_action_steps", "execute_steps", ()),
    ("cls", "readout", ()),
    ("blocks?", "group (of tokens)", ("nn/trunk.py", "nn/attention")),
    ("soup", "mixture", ()),
    ("agent", "policy", ()),
    ("is_pad", "a *_mask, True = real", ()),
    ("pad_mask", "a *_mask, True = real", ()),
    ("padding_mask", "a *_mask, True = real", ()),
)
EXEMPT = (
    "data/sources/",
    "data/standardizers/",
    "models/importers/",
    "policy/client.py",
    "policy/server.py",
    "policy/_wire.py",
)


def names(source: str) -> list[tuple[int, str]]:
    """(line, name) of public functions, their arguments, and annotated fields of classes."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            public = not node.name.startswith("_") or node.name in ("__init__", "__call__")
            if not public:
                continue
            found.append((node.lineno, node.name))
            arguments = [*node.args.posonlyargs, *node.args.args]
            if arguments and arguments[0].arg in ("self", "cls"):
                arguments = arguments[1:]  # Python's own cls
            arguments += node.args.kwonlyargs
            found += [(argument.lineno, argument.arg) for argument in arguments]
        elif isinstance(node, ast.ClassDef):
            fields = [entry for entry in node.body if isinstance(entry, ast.AnnAssign)]
            found += [(entry.lineno, entry.target.id) for entry in fields]
    return [(line, name) for line, name in found if not name.startswith("_") or "__" in name]


def violations(path: str, source: str) -> list[str]:
    """Names of a file of vla_jax (path from there) that the glossary has another word for."""
    if path.startswith(EXEMPT):
        return []
    found = []
    for line, name in names(source):
        for word, instead, homes in FORBIDDEN:
            if re.search(rf"(^|_){word}(_|$)", name) and not path.startswith(homes or ("\0",)):
                found.append(f"{path}:{line}: {name!r}; say {instead}")
    return found


def test_glossary():
    root, found = PROJECT / "vla_jax", []
    for file in sorted(root.rglob("*.py")):
        found += violations(file.relative_to(root).as_posix(), file.read_text())
    assert not found, "\n".join(found)


def unwanted() -> list[str]:
    """The words of the columns "not" of GLOSSARY.md, without what stands in brackets."""
    found, listed = set(), False
    for line in (PROJECT / "GLOSSARY.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in ("word", "letter"):  # a table's head
            listed = cells[-1] == "not"
        elif listed and line.startswith("|"):
            found |= set(re.sub(r"\(.*?\)", "", cells[-1]).replace(" ", "").split(","))
    return sorted(word for word in found if re.fullmatch(r"[a-z]\w+", word))


@pytest.mark.parametrize("word", unwanted())
def test_what_the_glossary_does_not_want_is_refused(word):
    assert violations("models/vla.py", f"def make(*, {word}): ...")


def test_the_glossary_is_read():
    assert {"robot_type", "traj", "cam_high", "pad_mask", "horizon", "block"} <= set(unwanted())


@pytest.mark.parametrize(
    "path, source, message",
    [
        ("heads/flow.py", "def make(context, *, horizon=4): ...", "action_horizon"),
        ("heads/flow.py", "def make(context, *, pred_horizon=4): ...", "action_horizon"),
        ("nn/layout.py", "class A:\n  pad_mask: int", "True = real"),
        ("data/window.py", "def split_traj(episode): ...", "episode"),
        ("policy/policy.py", "def act(state): ...", "observation"),
        ("policy/policy.py", "class P:\n  def __call__(self, prompt): ...", "task"),
        ("envs/cards.py", "def render(cam_high): ...", "primary"),
        ("models/vla.py", "def f(image_0): ...", "primary"),
        ("models/vla.py", "async def agent(): ...", "policy"),
        ("models/vla.py", "def f(a, cls): ...", "readout"),
    ],
)
def test_the_test_can_fail(path, source, message):
    assert any(message in line for line in violations(path, source))


@pytest.mark.parametrize(
    "path, source",
    [
        ("heads/flow.py", "def make(context, *, action_horizon=4): ..."),
        ("train/state.py", "def split(state): ..."),
        ("models/vla.py", "class A:\n  @classmethod\n  def make(cls, trunk): ..."),
        ("models/vla.py", "def _agent(prompt): ..."),
        ("data/standardizers/oxe.py", "def f(traj, cam_high): ..."),
        ("tokenizers/language.py", "def f(prompt): ..."),
        ("models/vla.py", "def f(statement, closure): ..."),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert violations(path, source) == []
