"""A model, data and a config so small that the train folder can be tested without upper floors."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vla_jax import config as config_lib
from vla_jax import types
from vla_jax.objectives import _base
from vla_jax.parallel import mesh as meshes
from vla_jax.train import checkpoint, loop, start

WINDOW, CHUNK, SIZE, READING = 2, 3, 2, 4


class Net(nn.Module):
    """Two layers, stacked on a leading axis, and a head per stream; noise from the rows' keys."""

    width: int = 16

    @nn.compact
    def __call__(self, batch, stream, keys):
        hand = batch.observation.proprio["hand"]
        noise = jax.vmap(lambda key: jax.random.normal(key, hand.shape[1:]))(keys[stream])
        x = nn.Dense(self.width, name="stem")(hand + 0.1 * noise)
        kernel = self.param(
            "kernel", nn.initializers.normal(0.2), (2, self.width, self.width), jnp.float32
        )
        for layer in range(2):
            # Constrained as the trunk does it: parallel/sharding.py says why.
            x = meshes.constrain(x + jnp.tanh(x @ kernel[layer]), "batch", None, None)
        if stream == "robot":
            answer = nn.Dense(CHUNK * SIZE, name="robot")(x).reshape(*x.shape[:2], CHUNK, SIZE)
            target = batch.targets["action"]
        else:
            answer = nn.Dense(2, name="vl")(x)
            target = batch.targets["point"]
        return {stream: {"answer": answer}}, {stream: {"square": (answer - target) ** 2}}


class Model:
    """What train/ sees of the net."""

    def __init__(self, width=16):
        self.net = Net(width)

    def init(self, key, batches):
        names = {name: jax.random.split(jax.random.key(0), 1) for name in batches}

        def both(net, batches):
            for name, batch in batches.items():
                keys = {name: jnp.broadcast_to(names[name], batch.row_id.shape)}
                net(batch, name, keys)

        return nn.init(both, self.net)(key, batches)

    def apply(self, variables, batch, stream, keys):
        return self.net.apply(variables, batch, stream, keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square(_base.Objective):
    """Squared error where the target's mask is True."""

    target: str

    def mask(self, batch):
        return {self.target: batch.target_masks[self.target]}

    def __call__(self, answers, errors, batch):
        mask, error = batch.target_masks[self.target], errors[self.head]["square"]
        mask = mask.reshape(mask.shape + (1,) * (error.ndim - mask.ndim)).astype(error.dtype)
        total = jnp.sum(error * mask)
        return total, {"square": (total, jnp.sum(mask))}


OBJECTIVES = {
    "robot": {"action": (Square(head="robot", target="action"), 1.0)},
    "vl": {"point": (Square(head="vl", target="point"), 0.5)},
}


def row(seed, stream, n):
    """One row of a stream: a pure function of its number."""
    rng = np.random.default_rng([seed, len(stream), n])
    hand = rng.normal(size=(WINDOW, READING)).astype(np.float32)
    if stream == "robot":
        value = np.tanh(hand[:, None, :SIZE]) * np.ones((1, CHUNK, 1))
        targets = {"action": value.astype(np.float32)}
        masks = {"action": rng.random((WINDOW, CHUNK, SIZE)) < 0.7}
    else:
        targets = {"point": np.cos(hand[:, 2:]).astype(np.float32)}
        masks = {"point": rng.random((WINDOW,)) < 0.5}
    return dict(
        observation=dict(images={}, proprio={"hand": hand}, timestep_mask=np.ones(WINDOW, bool)),
        task={},
        targets=targets,
        target_masks=masks,
        row_id=np.uint32(n),
        action_space=np.int32(0),
        dataset_key=np.int32(0),
    )


class Stream:
    """Rows [b] of batches of `batch_size`, from sample `n` on."""

    def __init__(self, stream, batch_size, rows, n, seed=0):
        self.stream, self.batch_size, self.rows, self.n, self.seed = (
            stream,
            batch_size,
            rows,
            n,
            seed,
        )
        self.closed = False

    def __next__(self):
        rows = [row(self.seed, self.stream, self.n + int(r)) for r in self.rows]
        self.n += self.batch_size
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    def close(self):
        self.closed = True


def streams(config, seed=0):
    """{stream: opener} as the loop takes them."""
    return {
        name: lambda rows, n, name=name, size=stream.batch_size: Stream(name, size, rows, n, seed)
        for name, stream in config.streams.items()
    }


def batch(config, name, n=0):
    """One whole Batch of numpy."""
    size = config.streams[name].batch_size
    return types.Batch.make(**next(Stream(name, size, np.arange(size), n)))


def batches(config, n=0):
    """{stream: Batch} of numpy."""
    return {name: batch(config, name, n) for name in config.streams}


def config(**changes):
    """The toy's config; `changes` replace top-level fields."""
    stream = dict(groups=(), window=WINDOW, action_horizon=CHUNK)
    tree = dict(
        steps=4,
        model=dict(trunk=dict(width=16)),
        streams=dict(
            robot=dict(batch_size=16, heads=("robot",), **stream),
            vl=dict(batch_size=8, heads=("vl",), **stream),
        ),
        optimizer=dict(lr=1e-2, warmup=2, weight_decay=0.1, ema=0.9),
        sharding=dict(
            rules=(("params/kernel", (None, "fsdp", "tensor")), (".*", "fsdp")), small=16
        ),
        checkpoint=dict(every=2, keep=2),
        log_every=1,
        writers=("jsonl",),
    )
    for name, change in changes.items():
        tree[name] = {**tree.get(name, {}), **change} if isinstance(change, dict) else change
    return config_lib.parse(config_lib.TrainConfig, tree)


def run(config, workdir, **arguments):
    """The training loop over the toy."""
    defaults = dict(
        model=Model(),
        streams=streams(config),
        objectives={name: OBJECTIVES[name] for name in config.streams},
        examples=batches(config),
        assets=checkpoint.Assets(),
    )
    return loop.run(config, workdir=str(workdir), **(defaults | arguments))


def saved(folder, steps=(1, 2), kernel=None, **changes):
    """(config, plan, state) of a run in `folder` with these resume points, of fresh parameters.

    `kernel` replaces the parameter of that name; `changes` are the config's.
    """
    made = config(**changes)
    mesh = meshes.make(devices=jax.devices()[:1])
    plan = start.plan(made, Model(), batches(made), mesh)
    state = start.fresh(plan)
    if kernel is not None:
        params = {**state.trained["params"], "kernel": kernel}
        state = dataclasses.replace(state, trained={"params": params})
    saver = checkpoint.Checkpoints(str(folder), made, checkpoint.Assets())
    for step in steps:
        saver.save(step, state, {"robot": 16 * step, "vl": 8 * step})
        saver.save_best(step, state, {"robot": 16 * step, "vl": 8 * step}, {"m": 1.0 / step})
    saver.close()
    return made, plan, state
