"""What lies in a checkpoint's folder beside arrays: where its steps are, and the JSON of each.

No array is opened here; `train/checkpoint.py` does that.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from vla_jax import config as config_lib
from vla_jax import plugin, types
from vla_jax.codecs.normalizer import Normalizer

FORMAT_VERSION = 1
RESUME, BEST = "checkpoints", "best"


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


def find(folder: str, step: int | None = None) -> pathlib.Path:
    """The folder of one step: `folder` itself, or the newest step (or `step`) of the run there."""
    root = pathlib.Path(folder).absolute()
    if (root / "meta").is_dir() and step is None:
        return root
    for place in (root / RESUME, root):
        saved = steps(place)
        if saved and step is None:
            return place / str(saved[-1])
        if saved and step not in saved:
            raise plugin.UserError(plugin.unknown(f"checkpoint step in {place}", str(step), saved))
        if saved:
            return place / str(step)
    state = "holds no complete checkpoint" if root.is_dir() else "does not exist"
    raise plugin.UserError(
        f"checkpoint {folder}: {state}; expected a run's folder with {RESUME}/STEP/params in it"
    )


def resumable(workdir: str) -> bool:
    """Whether a run in `workdir` would go on from a checkpoint there."""
    return bool(steps(pathlib.Path(workdir) / RESUME))


def read_meta(folder: pathlib.Path) -> Meta:
    """The parsed JSON item of one step's folder; UserError for another format version."""
    return _parse_meta(read_json(folder))


def read_json(folder: pathlib.Path) -> dict[str, Any]:
    """The JSON item of one step's folder as it stands; UserError for another format version."""
    path = pathlib.Path(folder) / "meta" / "metadata"
    if not path.is_file():
        raise damaged(folder, f"{path} is missing")
    try:
        raw = json.loads(path.read_text())
    except ValueError as error:
        raise damaged(folder, f"{path} is no JSON ({error})") from error
    version = raw["format_version"] if "format_version" in raw else None
    if version != FORMAT_VERSION:
        raise plugin.UserError(
            f"checkpoint {folder}: format_version {version}, this code reads {FORMAT_VERSION}; use "
            f"the version of vla_jax that wrote it (commit "
            f"{raw.get('provenance', {}).get('git_commit') or 'unknown'})"
        )
    return raw


def damaged(folder: pathlib.Path, what: str) -> plugin.UserError:
    """The error of a step's folder that cannot be read: what is wrong with it, how to go on."""
    folder = pathlib.Path(folder)
    others = [step for step in steps(folder.parent) if str(step) != folder.name]
    advice = "the run has no other; begin anew in another folder"
    if others:
        advice = (
            f"to go on from train_step {others[-1]}, move it away (mv {folder} {folder}.damaged) "
            "and give the same command again"
        )
    return plugin.UserError(
        f"checkpoint {folder} is damaged: {what}. `vla ckpt verify {folder}` says what else is; "
        f"{advice}"
    )


def steps(place: pathlib.Path) -> list[int]:
    """The steps saved in a folder of steps, ascending."""
    return sorted(int(path.name) for path in place.glob("*") if is_complete(path))


def is_complete(path: pathlib.Path) -> bool:
    """Whether a save has ended here: one that was interrupted has another name."""
    return path.name.isdigit() and (path / "meta").is_dir() and (path / "params").is_dir()


def to_json(step, n, config, assets: Assets, provenance: dict) -> dict[str, Any]:
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
    }


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
        step=raw["step"], n=raw["n"], config=config, assets=assets, provenance=raw["provenance"]
    )
