"""The floors and fences of the house, by walking the AST.

A file imports its own folder and any floor below; never sideways, never up. A new folder needs a
row here and an ADR.
"""

import ast
import pathlib

import pytest

PROJECT = pathlib.Path(__file__).resolve().parent.parent
FLOORS = (
    (
        "types",
        "trees",
        "plugin",
        "config",
        "schema",
        "storage",
    ),  # the ground: files that may import one another
    ("parallel", "embodiments", "codecs"),
    ("nn",),
    ("backbones",),
    ("tokenizers", "heads", "objectives", "data", "envs"),
    ("models",),
    ("train",),
    ("policy",),
    ("evals",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
# module -> the places that may import it
FENCES = {
    "flax": ("nn/", "backbones/", "tokenizers/", "heads/", "models/"),
    "tensorflow": ("data/sources/", "data/writers/"),
    "tensorflow_datasets": ("data/sources/", "data/writers/"),
    "tensorflow_metadata": ("data/sources/", "data/writers/"),
    "grain": ("data/",),
    "orbax": ("train/checkpoint.py", "train/stored.py"),
    "fsspec": ("storage.py",),
    "etils": ("storage.py",),
    "ml_collections": ("config.py", "cli/"),
    "gymnasium": ("envs/",),
    "mujoco": ("envs/",),
    "metaworld": ("envs/",),
    "wandb": ("train/writers/",),
    "tensorboardX": ("train/writers/",),
    "mlflow": ("train/writers/",),
    "av": ("data/sources/", "data/writers/"),
}
# Data workers and robot clients stay light: neither jax nor a file that imports it.
LIGHT = (
    "types.py",
    "plugin.py",
    "config.py",
    "schema.py",
    "storage.py",
    "embodiments/",
    "codecs/",
    "data/",
)
LIGHT_ROOMS = ("types", "plugin", "config", "schema", "storage", "embodiments", "codecs", "data")
JAX = ("jax", "jaxlib", "flax", "optax", "orbax", "chex")
OUTSIDE = ("tests", "configs", "launch", "tools", "benchmarks")
CLIENT = "policy/client.py"  # one file that robots copy


def imports(path: str, source: str) -> list[str]:
    """Dotted names that a file imports, wherever in it; relative ones are made absolute."""
    here, found = ["vla_jax", *path.split("/")[:-1]], []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


def violations(path: str, source: str) -> list[str]:
    """What a file of vla_jax (path from there) imports that it may not."""
    room, found = path.split("/")[0].removesuffix(".py"), []
    names = imports(path, source)
    if path == "__init__.py":
        return [f"vla_jax/__init__.py imports {name}" for name in names]
    if room not in LEVEL:
        return [f"{path}: {room!r} is no room of the house; a new one needs an ADR"]
    for name in names:
        top, *rest = name.split(".")
        if top == "vla_jax":
            other = rest[0] if rest else ""
            ground = LEVEL[room] == 0 and LEVEL.get(other) == 0
            if other not in LEVEL:
                found.append(f"{path} imports {name}, no room of the house")
            elif other != room and not ground and LEVEL[other] >= LEVEL[room]:
                where = "sideways" if LEVEL[other] == LEVEL[room] else "up"
                found.append(f"{path} imports {name}: {where}")
            if path.startswith(LIGHT) and other in LEVEL and other not in LIGHT_ROOMS:
                found.append(f"{path} imports {name}, which loads jax")
            if path == CLIENT:
                found.append(f"{path} imports {name}, but is self-contained")
        elif top in OUTSIDE:
            found.append(f"{path} imports {name} from outside the package")
        elif top in FENCES and not path.startswith(FENCES[top]):
            found.append(f"{path} imports {name}; only {FENCES[top]} may")
        elif top in JAX and (path.startswith(LIGHT) or path == CLIENT):
            found.append(f"{path} imports {name}; data workers and robot clients load no jax")
    return found


def test_floors_and_fences():
    root, found = PROJECT / "vla_jax", []
    for file in sorted(root.rglob("*.py")):
        found += violations(file.relative_to(root).as_posix(), file.read_text())
    assert not found, "\n".join(found)


def test_every_room_stands():
    folders = {p.parent.name for p in (PROJECT / "vla_jax").glob("*/__init__.py")}
    assert folders == set(LEVEL) - set(FLOORS[0])


@pytest.mark.parametrize(
    "path, source, message",
    [
        ("heads/flow.py", "from vla_jax.objectives import action", "sideways"),
        ("nn/trunk.py", "import vla_jax.models.vla", "up"),
        ("nn/trunk.py", "def f():\n  from vla_jax import train", "up"),
        ("nn/trunk.py", "from ..models import vla", "up"),
        ("config.py", "from vla_jax import parallel", "up"),
        (
            "nn/trunk.py",
            "import orbax.checkpoint as ocp",
            "only ('train/checkpoint.py', 'train/stored.py')",
        ),
        ("train/loop.py", "from flax import linen", "only ('nn/'"),
        ("policy/policy.py", "import tensorflow as tf", "only ('data/sources/'"),
        ("evals/report.py", "import mujoco", "only ('envs/',)"),
        ("codecs/actions.py", "import jax.numpy", "load no jax"),
        ("data/engine.py", "from vla_jax import trees", "which loads jax"),
        ("types.py", "import jax", "load no jax"),
        ("policy/client.py", "from vla_jax import plugin", "self-contained"),
        ("train/loop.py", "from vla_jax import helpers", "no room"),
        ("helpers/x.py", "import os", "needs an ADR"),
        ("train/loop.py", "from tests import toy", "outside"),
        ("__init__.py", "from vla_jax import types", "__init__"),
    ],
)
def test_the_test_can_fail(path, source, message):
    assert any(message in line for line in violations(path, source))


@pytest.mark.parametrize(
    "path, source",
    [
        ("heads/flow.py", "from vla_jax.heads import _base\nfrom vla_jax.nn import mlp"),
        ("heads/flow.py", "from . import _base"),
        ("trees.py", "import jax\nfrom vla_jax import plugin, types"),
        ("train/checkpoint.py", "import orbax.checkpoint as ocp"),
        ("data/sources/rlds.py", "from vla_jax.codecs import normalizer\nimport numpy as np"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert violations(path, source) == []
