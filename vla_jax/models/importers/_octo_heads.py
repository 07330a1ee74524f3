"""Octo's action heads in this project's words (action_heads.py), each with its objective.

A head of Octo reads a readout, or under the name "obs" all groups of the observation. Its loss is
the mean over what is real, for continuous heads times the action's dimensions: a weight here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vla_jax import plugin

SPACE = "octo"  # the action space of imported heads
LOSSES = {"mse": "l2", "l1": "l1"}
TOKENS_PER = {
    "": "chunk",
    "action_horizon": "step",
    "action_dim_and_action_horizon": "dimension",
}


def translate(
    name: str, kind: str, kwargs: Mapping[str, Any], seen: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(spec of the head, spec of its objective); `seen` are the groups of the observation.

    UserError for a head that Octo does not ship working.
    """
    makers = {
        "ContinuousActionHead": (_continuous, {}),
        "MSEActionHead": (_continuous, dict(loss_type="mse", use_map=True)),
        "L1ActionHead": (_continuous, dict(loss_type="l1", use_map=True)),
        "DiscreteActionHead": (_discrete, {}),
        "TokenPerDimActionHead": (_discrete, dict(token_per="action_dim_and_action_horizon")),
        "DiffusionActionHead": (_diffusion, {}),
    }
    if kind not in makers:
        raise plugin.UserError(plugin.unknown(f"octo config, heads.{name}", kind, makers))
    maker, defaults = makers[kind]
    given = {**defaults, **kwargs}
    spec = maker(given) | _read(name, given, seen)
    spec |= dict(action_space=SPACE, action_horizon=int(given.get("action_horizon", 1)))
    if spec["type"] == "bins" and spec["pool"] != "map":
        del spec["pool"]  # as many tokens as the chunk is divided among
    weight = 1.0 if spec["type"] == "bins" else float(given.get("action_dim", 7))
    return spec, dict(type="action", head=name, action_space=SPACE, weight=weight)


def _read(name: str, given: Mapping[str, Any], seen: Sequence[str]) -> dict[str, Any]:
    """What the head reads, and how many tokens become the few that it needs."""
    key, pooled = given["readout_key"], given.get("use_map", False)
    if key == "obs":
        source, mean = dict(groups=tuple(seen)), "mean_all"
    elif key.startswith("obs_"):
        source, mean = dict(groups=(key.removeprefix("obs_"),)), "mean_all"
    elif key.startswith("readout_"):
        source, mean = dict(readout=key.removeprefix("readout_")), "mean"
    else:
        known = ("obs", "readout_…", "obs_…")
        raise plugin.UserError(plugin.unknown(f"octo config, heads.{name}.readout_key", key, known))
    return source | dict(pool="map" if pooled else mean)


def _continuous(given: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        type="regression",
        hidden=(),
        loss=LOSSES[given.get("loss_type", "mse")],
        max_action=float(given.get("max_action", 5.0)),
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
