"""The environment of a process that is to see so many CPU devices; must stand before jax starts.

Imports no jax: whoever starts such processes need not load it.
"""

from __future__ import annotations

import os
import re

FLAG = "--xla_force_host_platform_device_count"


def variables(count: int) -> dict[str, str]:
    """What to lay over the environment for `count` CPU devices; other flags of XLA are kept."""
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags(count)}


def flags(count: int) -> str:
    """XLA_FLAGS as they are, with `count` CPU devices."""
    kept = re.sub(rf"{FLAG}=\d+", "", os.environ.get("XLA_FLAGS", ""))
    return f"{kept} {FLAG}={count}".strip()


def count() -> int:
    """How many this process has, or will have: jax reads the flag when it starts; 0 without it."""
    found = re.findall(rf"{FLAG}=(\d+)", os.environ.get("XLA_FLAGS", ""))
    on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu"
    return int(found[-1]) if found and on_cpu else 0
