"""What a plan takes at least, from shapes alone: traced once, compiled never.

    memory  state on the mesh + its rows of the batch (both exact)
            + what the layers' scan keeps for its backward pass, spread over all devices
    time    arithmetic, and the state's way through memory (both as in train/plan.py)

No program that XLA makes of the config holds less (it recomputes within a loop, never what one loop
left to the next) or, by the roofline, takes less time. What a mesh
will send is only estimated, by the collectives of FSDP (Rajbhandari et al. 2020, ZeRO) and of split
matmuls (Shoeybi et al. 2019, Megatron-LM): it says what to look at first, and rules nothing out.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vla_jax import config as config_lib
from vla_jax import trees
from vla_jax.models import synthetic
from vla_jax.nn import trunk
from vla_jax.parallel import chips, sharding
from vla_jax.parallel import mesh as meshes
from vla_jax.train import feed, plan, smoke, start
from vla_jax.train import flops as flops_lib
from vla_jax.train import step as steps

REMAT = tuple(trunk.REMAT)  # of config.model.trunk.remat, from keeping all to keeping nothing
Sizes = Mapping[str, int]  # of the mesh's axes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """What one mesh, remat and batch take at least; bytes per device, seconds per train_step."""

    state_bytes: int
    held_bytes: int  # state, batch and those read ahead: exact
    kept_bytes: int  # of activations
    least_s: float  # 0 where nobody knows the chip's peaks
    estimated_s: float  # the same with what the mesh may send
    estimated_sent: float  # bytes

    @property
    def program_bytes(self) -> int:
        """What the program holds at least."""
        return self.held_bytes + self.kept_bytes


class Bounds:
    """The bounds of a config on so many devices, for every mesh, remat and multiple of its batch.

    UserError for what does not fit together in the config; `factors` are the multiples to come.
    """

    def __init__(
        self,
        config: config_lib.TrainConfig,
        chip: chips.Chip,
        found: Sequence[jax.Device],
        factors: Sequence[int] = (1,),
    ):
        self._chip, self._found = chip, list(found)
        # The batch that divides wherever one of them does; all is linear in its rows.
        self._rows = math.lcm(*factors)
        self._config = changed(config, None, REMAT[-1], self._rows)
        tokenizer, _ = smoke.text_tokenizer(config)
        size = tokenizer.vocabulary_size
        self._network, _ = smoke.parts(self._config, tokenizer)
        self._batches = synthetic.abstract(self._config, size)
        one = meshes.make({}, self._found[:1])
        alone = dataclasses.replace(self._config, mesh=config_lib.MeshConfig())
        run = start.plan(alone, self._network, synthetic.examples(config, size), one)
        self._variables, self._state = run.variables, run.abstract
        # Each remat is traced when it is first asked for.
        self.kept = functools.cache(lambda remat: self._keeps(remat, tokenizer, run))
        work = flops_lib.train_step(alone, self._network, size, run.variables, self._batches)
        self._work = sum(work.values())

    def of(self, mesh: Sizes, remat: str, factor: int) -> Bound:
        """The bound of one mesh, remat and multiple of the batch; UserError where they are no plan.

        Whether the multiple itself divides over the mesh is left to the plan.
        """
        config = changed(self._config, mesh, remat, 1)
        made = meshes.make(mesh, self._found)
        start.check_batches(config, made)
        state, share = self._placed(made), factor / self._rows
        memory = plan.exact_memory(state, self._batches, made)
        batch = int(memory["batch_bytes"] * share)
        held = sum(memory.values()) - memory["batch_bytes"]
        work = {"all": self._work * share}
        sent = {"estimated": {"bytes": self._sends(state, made, share)}}
        memory["batch_bytes"] = batch
        least, guessed = (
            plan.times(config, self._chip, len(self._found), work, memory, found)
            for found in ({}, sent)
        )
        return Bound(
            state_bytes=held,
            held_bytes=held + (1 + feed.AHEAD) * batch,
            kept_bytes=int(self.kept(remat) * share) // len(self._found),
            least_s=least["step_lower_bound_s"] or 0.0,
            estimated_s=guessed["step_lower_bound_s"] or 0.0,
            estimated_sent=sent["estimated"]["bytes"],
        )

    def _placed(self, mesh: jax.sharding.Mesh) -> Any:
        rules, small = self._config.sharding.rules, self._config.sharding.small
        places = sharding.state_shardings(self._state, self._variables, rules, mesh, small)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self._state, places
        )

    def _keeps(self, remat: str, tokenizer: Any, run: start.Plan) -> int:
        """Bytes that the largest scan of layers keeps for its backward pass, of all rows."""
        config = changed(self._config, None, remat, 1)
        network, objectives = smoke.parts(config, tokenizer)
        do = steps.make_train_step(network.apply, objectives, run.optimizer, config)
        with meshes.use(run.mesh):  # kernels of attention ask it what the devices are
            traced = jax.make_jaxpr(do)(run.abstract, self._batches)
        return max(_stacked(traced.jaxpr), default=0)

    def _sends(self, state: Any, mesh: jax.sharding.Mesh, share: float) -> float:
        """Estimated bytes that a device sends per train_step."""
        batch_ways, total = mesh.shape["data"] * mesh.shape["fsdp"], 0.0
        for _, leaf in trees.items(state.trained):
            axes = [name for part in leaf.sharding.spec if part for name in np.atleast_1d(part)]
            ways = math.prod(mesh.shape[name] for name in axes if name in meshes.BATCH)
            part = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            total += 3 * (ways - 1) * part  # gathered in both passes, its gradient scattered
            total += 2 * (1 - ways / batch_ways) * part  # and summed with those of the others
        config, split = self._config, mesh.shape["tensor"] * mesh.shape["sequence"]
        for name, stream in config.streams.items():
            tokens = stream.batch_size * share / batch_ways * self._network.layout(name).length
            layer = tokens * config.model.trunk["width"] * np.dtype(config.model.dtype).itemsize
            # Attention and MLP each sum what they give, in both passes.
            total += config.model.trunk["depth"] * 4 * layer * 2 * (1 - 1 / split)
        return total


def changed(
    config: config_lib.TrainConfig, mesh: Sizes | None, remat: str, factor: int
) -> config_lib.TrainConfig:
    """The config with this mesh (None: its own), remat and multiple of its batch sizes."""
    sizes = {} if mesh is None else mesh
    return dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, **sizes),
        model=dataclasses.replace(config.model, trunk={**config.model.trunk, "remat": remat}),
        streams={
            name: dataclasses.replace(stream, batch_size=stream.batch_size * factor)
            for name, stream in config.streams.items()
        },
    )


def _stacked(jaxpr: Any) -> list[int]:
    """Bytes that each scan leaves stacked, one entry per round: backward ones run in reverse."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan" and not equation.params["reverse"]:
            # What is stacked has one axis more than the body gives; what is carried has not.
            pairs = zip(equation.outvars, equation.params["jaxpr"].jaxpr.outvars, strict=True)
            stacked = [v.aval for v, inner in pairs if v.aval.ndim > inner.aval.ndim]
            found.append(sum(math.prod(x.shape) * plan.item_bytes(x) for x in stacked))
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                sub = getattr(item, "jaxpr", item)  # a ClosedJaxpr, or a Jaxpr
                if hasattr(sub, "eqns"):
                    found += _stacked(sub)
    return found
