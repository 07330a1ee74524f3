"""What every test stands on: CPU only, 8 fake devices, software rendering, strict ranks."""

import atexit
import importlib.metadata
import os
import pathlib
import shutil
import sys
import tempfile

PROJECT = pathlib.Path(__file__).resolve().parent.parent

# Settings travel by environment, so that processes started by tests share them. They must stand
# before the first `import jax`; the values of whoever calls pytest win.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MUJOCO_GL", "osmesa")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
# XLA's effort goes into speed that tiny models cannot show: without it the suite takes two thirds
# of the time. `make test-slow` compiles as a user does.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
XLA_FLAGS = "--xla_force_host_platform_device_count=8"
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
    # XLA's newer way to compile what it fuses takes four times the CPU of the older one, which
    # only jaxlib 0.10 still has: later ones end the process at an unknown flag.
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)
# Compiled programs are kept between runs: the same results bit for bit, a quarter of the time.
CACHE = PROJECT / ".cache" / "jax-tests"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Indexes of recorded data lie in a folder of this run: fixtures are not ours to write into.
if "VLA_JAX_INDEX_DIR" not in os.environ:
    os.environ["VLA_JAX_INDEX_DIR"] = tempfile.mkdtemp(prefix="vla-jax-index-")
    atexit.register(shutil.rmtree, os.environ["VLA_JAX_INDEX_DIR"], ignore_errors=True)

import pytest  # noqa: E402


def pytest_configure(config):
    if "jax" in sys.modules:
        raise pytest.UsageError("jax was imported before tests/conftest.py set its environment")
    if not hasattr(config, "workerinput"):  # once, before xdist's workers start
        if sum(entry.stat().st_size for entry in CACHE.glob("*")) > 2**30:
            shutil.rmtree(CACHE, ignore_errors=True)


# Folders by the seconds of their longest file: two workers then end at the same time.
LONGEST_FIRST = ("tests", "train", "nn", "heads", "parallel", "tokenizers", "models", "cli")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.parent.name, len(places)))


@pytest.fixture(scope="session")
def fixtures_dir() -> pathlib.Path:
    """The folder of recorded data, from VLA_JAX_FIXTURES or ../shared/fixtures; skips if absent."""
    path = pathlib.Path(os.environ.get("VLA_JAX_FIXTURES", PROJECT.parent / "shared" / "fixtures"))
    if not path.is_dir():
        pytest.skip(f"no fixtures at {path}; point VLA_JAX_FIXTURES at them")
    return path
