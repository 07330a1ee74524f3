"""What lies in a checkpoint's folder beside arrays: where its steps are, and the JSON of each.

No array is opened here; `train/checkpoint.py` does that.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from vla_jax import config as config_lib
from vla_jax import plugin, storage, types
from vla_jax.codecs.normalizer import Normalizer

FORMAT_VERSION = 2
OLDER = (1,)  # which `_current` turns into this one
RESUME, BEST = "checkpoints", "best"
COMMITTED = "commit_success.txt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assets:
    """What a checkpoint keeps beside arrays, so that its folder is enough to act."""

    normalizer: str | None = None  # codecs.Normalizer.to_json()
    text_tokenizer: bytes | None = None  # see codecs/text_tokenizer.py
    action_spaces: tuple[types.ActionSpace, ...] = ()
    mixtures: Mapping[str, Mapping[str, str]] = dataclasses.field(
        default_factory=dict
    )  # stream -> {"fingerprint": …, "table": …}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """The JSON item of a checkpoint, parsed."""

    step: int
    n: dict[str, int]  # stream -> samples drawn
    config: config_lib.TrainConfig
    assets: Assets
    provenance: dict[str, Any]
    # What the run had taken by then, see accounting.Account.
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)


def compare(ours: Assets, theirs: Assets) -> dict[str, bool]:
    """{asset: whether both agree}; statistics to 1e-6, since another CPU may sum otherwise."""
    normalizers = [
        Normalizer.from_json(assets.normalizer) if assets.normalizer else None
        for assets in (ours, theirs)
    ]
    if None in normalizers:
        same = normalizers[0] is normalizers[1]
    else:
        same = normalizers[0].close_to(normalizers[1])
    return {
        "statistics or modes of the normalizer": same,
        "pieces of the text tokenizer": ours.text_tokenizer == theirs.text_tokenizer,
        "action spaces of the embodiments": ours.action_spaces == theirs.action_spaces,
    }


def place(folder: storage.Path) -> pathlib.PurePath:
    """Where checkpoints lie or will, absolute; UserError for a URL at which Orbax puts no arrays.

    Orbax 0.12.8 knows TensorStore's drivers for files and gs:// alone: an s3:// path it takes for a
    relative one and refuses at the first save (`_use_gcs_driver`,
    orbax/checkpoint/_src/serialization/tensorstore_utils.py).
    """
    if storage.is_url(storage.normal(folder)) and not os.fspath(folder).startswith("gs://"):
        raise plugin.UserError(
            f"{folder}: Orbax, which writes and reads checkpoints, knows local paths and gs://, no "
            "other URLs; use a folder that all hosts mount (Lustre, NFS, FSx), or gs://BUCKET/…"
        )
    return storage.path(folder)


def find(folder: storage.Path, step: int | None = None) -> pathlib.PurePath:
    """The folder of one step: `folder` itself, or the newest step (or `step`) of the run there."""
    root = place(folder)
    if storage.is_dir(root / "meta") and step is None:
        return root
    for below in (root / RESUME, root):
        saved = steps(below)
        if saved and step is None:
            return below / str(saved[-1])
        if saved and step not in saved:
            raise plugin.UserError(plugin.unknown(f"checkpoint step in {below}", str(step), saved))
        if saved:
            return below / str(step)
    state = "holds no complete checkpoint" if storage.is_dir(root) else "does not exist"
    raise plugin.UserError(
        f"checkpoint {folder}: {state}; expected a run's folder with {RESUME}/STEP/params in it"
    )


def resumable(workdir: str) -> bool:
    """Whether a run in `workdir` would go on from a checkpoint there."""
    return bool(steps(place(workdir) / RESUME))


def read_meta(folder: pathlib.PurePath) -> Meta:
    """The parsed JSON item of one step's folder; UserError for another format version."""
    return _parse_meta(read_json(folder))


def read_json(folder: pathlib.PurePath) -> dict[str, Any]:
    """The JSON item of one step's folder, as this format version says it; UserError for a newer."""
    path = storage.path(folder) / "meta" / "metadata"
    if not storage.is_file(path):
        raise damaged(folder, f"{path} is missing")
    try:
        raw = json.loads(storage.read(path))
    except ValueError as error:
        raise damaged(folder, f"{path} is no JSON ({error})") from error
    version = raw["format_version"] if "format_version" in raw else None
    if version not in (*OLDER, FORMAT_VERSION):
        raise plugin.UserError(
            f"checkpoint {folder}: format_version {version}, this code reads {OLDER[0]} to "
            f"{FORMAT_VERSION}; use the version of vla_jax that wrote it (commit "
            f"{raw.get('provenance', {}).get('git_commit') or 'unknown'})"
        )
    return raw if version == FORMAT_VERSION else _current(raw)


def damaged(folder: pathlib.PurePath, what: str) -> plugin.UserError:
    """The error of a step's folder that cannot be read: what is wrong with it, how to go on."""
    folder = storage.path(folder)
    move = "gcloud storage mv" if storage.is_url(folder) else "mv"
    others = [step for step in steps(folder.parent) if str(step) != folder.name]
    advice = "the run has no other; begin anew in another folder"
    if others:
        advice = (
            f"to go on from train_step {others[-1]}, move it away ({move} {folder} "
            f"{folder}.damaged) and give the same command again"
        )
    return plugin.UserError(
        f"checkpoint {folder} is damaged: {what}. `vla ckpt verify {folder}` says what else is; "
        f"{advice}"
    )


def steps(folder: pathlib.PurePath) -> list[int]:
    """The steps saved in a folder of steps, ascending."""
    return sorted(int(name) for name in storage.names(folder) if is_complete(folder / name))


def is_complete(path: pathlib.PurePath) -> bool:
    """Whether a save has ended here.

    One that was interrupted has another name; in a bucket, where nothing is renamed, it lacks the
    file that Orbax puts last.
    """
    if not path.name.isdigit() or storage.is_url(path) and not storage.is_file(path / COMMITTED):
        return False
    return storage.is_dir(path / "meta") and storage.is_dir(path / "params")


def to_json(
    step, n, config, assets: Assets, provenance: dict, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """The JSON item of a step's folder, as an object."""
    tokenizer = assets.text_tokenizer
    return {
        "format_version": FORMAT_VERSION,
        "step": step,
        "n": dict(n),
        "config": json.loads(config_lib.to_json(config)),
        "normalizer": assets.normalizer,
        "action_spaces": [dataclasses.asdict(space) for space in assets.action_spaces],
        "text_tokenizer": None if tokenizer is None else base64.b64encode(tokenizer).decode(),
        "mixtures": {stream: dict(mixture) for stream, mixture in assets.mixtures.items()},
        "provenance": provenance,
        "seconds": dict(seconds),
    }


def _current(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What an older format version wrote, said as this one says it.

    1 had XLA's options flat, for whatever platform: each goes to the one that its name holds, the
    others to the CPU, for which our configs had them.
    """
    options: dict[str, dict[str, Any]] = {"cpu": {}, "gpu": {}, "tpu": {}}
    flat = raw["config"]["compiler"] if "compiler" in raw["config"] else {}
    for name, value in flat.items():
        named = [platform for platform in options if name.startswith(f"xla_{platform}_")]
        options[named[0] if named else "cpu"][name] = value
    config = {**raw["config"], "compiler": options}
    return {**raw, "format_version": FORMAT_VERSION, "config": config}


def _parse_meta(raw: Mapping[str, Any]) -> Meta:
    tokenizer = raw["text_tokenizer"]
    assets = Assets(
        normalizer=raw["normalizer"],
        text_tokenizer=None if tokenizer is None else base64.b64decode(tokenizer),
        action_spaces=tuple(
            config_lib.parse(types.ActionSpace, space, "checkpoint.action_spaces")
            for space in raw["action_spaces"]
        ),
        mixtures=raw["mixtures"],
    )
    config = config_lib.parse(config_lib.TrainConfig, raw["config"], "checkpoint.config")
    return Meta(
        step=raw["step"],
        n=raw["n"],
        config=config,
        assets=assets,
        provenance=raw["provenance"],
        seconds=raw["seconds"] if "seconds" in raw else {},  # older saves have none
    )
