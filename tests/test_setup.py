"""The environment is what setup.py asks for, on every Python version that we pin."""

import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = pathlib.Path(__file__).resolve().parent.parent
EXTRAS = ("", "sim", "rlds", "gcs", "wandb", "dev")


def pins(name: str) -> dict[str, str]:
    """Package -> version of one constraints file."""
    lines = (PROJECT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("version", ["3.11", "3.12"])
def test_constraints_pin_every_requirement(version):
    pinned = pins(f"constraints-py{version.replace('.', '')}.txt")
    where = {"python_version": version, "platform_machine": "x86_64", "sys_platform": "linux"}
    seen = set()
    for line in importlib.metadata.requires("vla_jax"):
        requirement = Requirement(line)
        marker = requirement.marker
        if marker and not any(marker.evaluate(where | {"extra": extra}) for extra in EXTRAS):
            continue
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} of setup.py is not in the constraints of {version}"
        assert requirement.specifier.contains(pinned[name]), f"{line} but pinned {pinned[name]}"
        seen.add(name)
    assert {"jax", "mujoco", "tensorflow-cpu", "pytest"} <= seen


def test_constraints_name_no_place():
    for path in PROJECT.glob("constraints-*.txt"):
        assert not re.search(r"://|^-|@", path.read_text(), re.MULTILINE), path


def test_describing_rlds_data_loads_no_tensorflow():
    code = "import sys, tensorflow_datasets; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_the_package_itself_imports_nothing():
    code = (
        "import sys; before = set(sys.modules); import vla_jax;"
        "print(sorted(set(sys.modules) - before - {'vla_jax'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.sim
def test_off_screen_rendering():
    mujoco = pytest.importorskip("mujoco")
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><light pos='0 0 2'/><geom size='.3'/></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, 32, 32) as renderer:
        renderer.update_scene(data)
        assert renderer.render().std() > 1
