"""Hosts that were not started alike are refused at the start: they would train something else.

Programs that differ wait for one another in their collectives for ever, or average what does not
belong together; both look like bad luck with the network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from vla_jax import config as config_lib
from vla_jax import plugin, storage
from vla_jax.parallel import processes
from vla_jax.train import meta, provenance

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
LONG = 100  # characters of a value that are compared, and shown, as they are
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
OWN = ("--xla_dump", "--xla_force_host_platform_device_count")  # flags that may differ


def on_start(config: config_lib.TrainConfig, workdir: str | None) -> None:
    """UserError, on every process, unless all have this config, workdir, code, packages and flags.

    It names the host and the first settings, files, packages or flags that differ.
    """
    if jax.process_count() == 1:
        return
    facts = {"--workdir": str(workdir and storage.absolute(workdir))}
    facts |= dict(_flat("config", dataclasses.asdict(config)))
    facts |= {f"package {name}": found for name, found in provenance.versions().items()}
    facts |= _flags()
    facts |= {
        f"vla_jax/{path.relative_to(PACKAGE)}": digest(path.read_bytes())
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    _refuse(facts, "Give the same command on every host, with the same code and packages")


def on_data(assets: meta.Assets) -> None:
    """UserError, on every process, unless all have these data, words and files of the user's."""
    if jax.process_count() == 1:
        return
    facts = {
        f"data of stream {name}": mixture["fingerprint"]
        for name, mixture in assets.mixtures.items()
    }
    facts["text tokenizer"] = digest(assets.text_tokenizer or b"")
    facts |= {
        f"file {pathlib.Path(file).name}": digest(pathlib.Path(file).read_bytes())
        for file in sorted(plugin.outside)
    }
    _refuse(facts, "Give every host the same data and files")


def digest(content: bytes) -> str:
    """A short hash."""
    return hashlib.blake2b(content, digest_size=6).hexdigest()


def _refuse(facts: Mapping[str, str], advice: str) -> None:
    found = processes.differences(facts)
    if found:
        raise processes.KnownToAll(f"the processes of this run differ:\n{found}\n{advice}.")


def _flat(where: str, value: Any) -> Iterator[tuple[str, str]]:
    """(a.b.c, its JSON) of every setting; long ones by their hash."""
    if isinstance(value, Mapping) and value:
        for name, entry in value.items():
            yield from _flat(f"{where}.{name}", entry)
        return
    text = json.dumps(value)
    yield where, text if len(text) <= LONG else f"{text[:LONG]}… ({digest(text.encode())})"


def _flags() -> dict[str, str]:
    """{flag of the compiler: its value}, but for those that may differ between hosts."""
    words = [word for name in FLAGS for word in os.environ.get(name, "").split()]
    pairs = (word.partition("=") for word in words if not word.startswith(OWN))
    return {f"flag {name}": value for name, _, value in pairs}
