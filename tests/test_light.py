"""The ground, robot bodies, codecs and the workers' side of data load no jax, no TensorFlow."""

import pathlib
import subprocess
import sys

PROJECT = pathlib.Path(__file__).resolve().parent.parent
GROUND = ("types", "plugin", "config", "schema", "storage")
FOLDERS = ("embodiments", "codecs", "data", "data/sources", "data/standardizers")
HEAVY = ("jax", "jaxlib", "flax", "tensorflow", "orbax", "tokenizers", "safetensors")


def modules() -> list[str]:
    """Every module of these floors, by listing (data/writers/ is a verb's, not a worker's)."""
    found = [f"vla_jax.{name}" for name in GROUND]
    for folder in FOLDERS:
        for path in sorted((PROJECT / "vla_jax" / folder).glob("*.py")):
            found.append(".".join(("vla_jax", *folder.split("/"), path.stem)))
    return [name.removesuffix(".__init__") for name in found]


def loads(code: str) -> str:
    program = f"import sys; {code}; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=PROJECT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_light_floors_load_nothing_heavy():
    names = modules()
    assert len(names) > 30 and "vla_jax.data.sources.rlds" in names
    assert loads(f"import importlib; [importlib.import_module(n) for n in {names!r}]") == "[]"


def test_the_test_can_fail():
    assert "jax" in loads("import vla_jax.trees")
