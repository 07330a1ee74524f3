"""Where a checkpoint comes from: code, command line, versions."""

from __future__ import annotations

import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
DIFF_LIMIT = 200_000  # characters of `git diff` that a checkpoint keeps


def collect() -> dict[str, Any]:
    """Command line, versions, devices, and the commit and diff of the code ("" outside of git)."""
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": versions(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "git_commit": _git(root, "rev-parse", "HEAD").strip(),
        "git_diff": _git(root, "diff", "HEAD", "--", "*.py")[:DIFF_LIMIT],
    }


def versions() -> dict[str, str]:
    """{package: its version} of what a training's numbers depend on."""
    return {name: _version(name) for name in (*PACKAGES, "vla_jax")}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git(root: pathlib.Path, *arguments: str) -> str:
    """A git command's output, "" where there is no git or no repository: pods run from images."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
