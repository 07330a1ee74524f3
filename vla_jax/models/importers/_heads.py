"""Action heads of Octo and CrossFormer in this project's words (action_heads.py of both).

A head reads a readout, or under the name "obs" all groups of the observation. Its objective is the
mean over what is real, for Octo's continuous heads times the action's dimensions: a weight here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vla_jax import plugin
from vla_jax.models.importers import _project

LOSSES = {"mse": "l2", "l1": "l1"}
POOLS = ("mean", "use_map", "pass")
TOKENS_PER = {
    "": "chunk",
    "action_horizon": "step",
    "action_dim_and_action_horizon": "dimension",
}


def translate(
    project: _project.Project, name: str, spec: Mapping[str, Any], seen: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(spec of the head, spec of its objective); `seen` are the groups of the observation.

    `spec` is its ModuleSpec, of kwargs under their newest names. UserError for a head that the
    project does not ship working.
    """
    makers = {
        "DiscreteActionHead": _discrete,
        "TokenPerDimActionHead": _discrete,
        "DiffusionActionHead": _diffusion,
    }
    kind, where = spec["name"], f"{project.name} config, heads.{name}"
    if kind not in project.heads:
        raise plugin.UserError(plugin.unknown(where, kind, project.heads))
    given = {**project.heads[kind], **spec["kwargs"]}
    made = makers.get(kind, _continuous)(given) | _read(where, given, seen)
    space, horizon = project.space(name), int(given.get("action_horizon", 1))
    made |= dict(action_space=space, action_horizon=horizon)
    if made["type"] == "bins" and made["pool"] != "map":
        del made["pool"]  # as many tokens as the chunk is divided among
    if made["type"] == "regression":
        _check_size(where, given, horizon)
    if given.get("pool_strategy") == "pass":
        made["tokens_per"] = "step"
    factor = size(spec) if project.summed and made["type"] != "bins" else 1
    weight = factor * float(given.get("loss_weight", 1.0))
    objective = dict(type="action", head=name, action_space=space, action_horizon=horizon)
    if project.space_per_head:
        objective["by_rows"] = True
    return made, objective | dict(weight=weight)


def size(spec: Mapping[str, Any]) -> int:
    """Numbers per action of a head's ModuleSpec."""
    return int(spec["kwargs"].get("action_dim", 7))


def _check_size(where: str, given: Mapping[str, Any], horizon: int) -> None:
    """UserError where the head does not predict a chunk, or with "pass" an action per token."""
    passed, dim = given.get("pool_strategy") == "pass", int(given.get("action_dim", 7))
    numbers, wanted = given.get("num_preds") or horizon * dim, dim if passed else horizon * dim
    if numbers != wanted:
        raise plugin.UserError(
            f"{where}: num_preds={numbers}, expected {wanted}: "
            + ("the numbers of an action, as each token is one" if passed else "those of a chunk")
        )


def _read(where: str, given: Mapping[str, Any], seen: Sequence[str]) -> dict[str, Any]:
    """What the head reads, and how many tokens become the few that it needs."""
    key, strategy = given["readout_key"], given.get("pool_strategy", "mean")
    if strategy not in POOLS:
        raise plugin.UserError(plugin.unknown(f"{where}.pool_strategy", strategy, POOLS))
    if strategy == "pass":
        return dict(_source(where, key, seen), pool="none")
    pooled = given.get("use_map", False) or strategy == "use_map"
    source = _source(where, key, seen)
    mean = "mean" if "readout" in source else "mean_all"
    return source | dict(pool="map" if pooled else mean)


def _source(where: str, key: str, seen: Sequence[str]) -> dict[str, Any]:
    """The readout or the groups that the readout_key `key` means."""
    if key == "obs":
        return dict(groups=tuple(seen))
    if key.startswith("obs_"):
        return dict(groups=(key.removeprefix("obs_"),))
    if key.startswith("readout_"):
        return dict(readout=key.removeprefix("readout_"))
    known = ("obs", "readout_…", "obs_…")
    raise plugin.UserError(plugin.unknown(f"{where}.readout_key", key, known))


def _continuous(given: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        type="regression",
        hidden=(),
        loss=LOSSES[given.get("loss_type", "mse")],
        max_action=float(given.get("max_action", 5.0)) if given.get("clip_pred", True) else None,
    )


def _diffusion(given: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        type="diffusion",
        loss=LOSSES[given.get("loss_type", "mse")],
        max_action=float(given.get("max_action", 5.0)),
        diffusion_steps=int(given.get("diffusion_steps", 20)),
        n_diffusion_samples=int(given.get("n_diffusion_samples", 1)),
        hidden=int(given.get("hidden_dim", 256)),
        depth=int(given.get("num_blocks", 3)),
        time_features=int(given.get("time_dim", 32)),
        masked="given",
    )


def _discrete(given: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        type="bins",
        bins=int(given.get("vocab_size", 256)),
        spacing=given.get("normalization_type", "uniform"),
        low=0.0,
        high=1.0,
        beyond="first",
        tokens_per=TOKENS_PER[given.get("token_per", "action_dim_and_action_horizon")],
    )
