"""A user's own config made small, trained 2 + 2 steps on one device and on a mesh, and compared.

    config ─ shrink ─▶ one device  4 steps │ 2 steps, checkpoint, 2 steps      bit for bit
                       mesh        4 steps │ 2 steps, checkpoint, 2 steps      bit for bit
                          └── losses, gradients, change of the parameters: relative differences

Every plug-in's `DEBUG` (sizes only) is laid over its spec; what the config means (streams, rules,
objectives, reads, windows, tables) stays. Batches are synthetic, nothing is read but the config.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from vla_jax import config as config_lib
from vla_jax import plugin, storage, trees
from vla_jax.codecs import text_tokenizer as text_tokenizer_lib
from vla_jax.models import build, specs, synthetic
from vla_jax.nn import attention_kernels
from vla_jax.parallel import arrays
from vla_jax.parallel import mesh as meshes
from vla_jax.train import checkpoint, program, start

STEPS = 4  # train_steps
HEADS, HEAD_DIM, DEPTH, DIM = 4, 8, 2, 8  # of the small trunk; DIM: of shared modules
ROWS = 4  # the least batch size
SMALL = 64  # parameters of fewer numbers are replicated
# float32 sums in another order: a gradient differs by 1e-6 or so of its norm.
TOLERANCE = dict(loss=1e-5, gradient=1e-5, change=1e-4)
# Eight train_steps of a tiny network: a CPU would optimize longer than it computes.
COMPILER = {"xla_backend_optimization_level": 0}
WORDS = (
    "the quick brown fox jumps over a lazy dog and packs my box with five dozen liquor jugs",
    "touch point to pick up place put push pull open close move turn left right red green blue",
)


# ---------------------------------------------------------------------------- making it small


def shrink(config: config_lib.TrainConfig, mesh: Mapping[str, int]) -> config_lib.TrainConfig:
    """The config at its smallest: sizes that the axes of `mesh` divide, float32, no data.

    Epsilon of AdamW is large, so that parameters whose true gradient is zero stay where they are.
    In place of a platform's kernel of attention stands what computes the same anywhere.
    """
    model, depth = _model(config.model, mesh), config.model.trunk["depth"]
    pieces = min(config.optimizer.accumulation, 2)
    ways = mesh.get("data", 1) * mesh.get("fsdp", 1) * pieces
    rows = ways * max(1, -(-ROWS // ways))
    streams = {
        name: _stream(config.model, model, stream, rows) for name, stream in config.streams.items()
    }
    optimizer = dataclasses.replace(
        config.optimizer,
        accumulation=pieces,
        warmup=min(config.optimizer.warmup, 1),
        eps=1e-3,
        groups=tuple((row, _per_layer(value, depth)) for row, value in config.optimizer.groups),
    )
    return dataclasses.replace(
        config,
        steps=STEPS,
        text_pieces=None,
        model=model,
        streams=streams,
        optimizer=optimizer,
        init_from=None,
        sharding=config_lib.ShardingConfig(rules=_rules(config.sharding.rules), small=SMALL),
        checkpoint=config_lib.CheckpointConfig(every=2, keep=2),
        validation=config_lib.ValidationConfig(),
        compiler=dataclasses.replace(config.compiler, cpu=dict(COMPILER)),
        workers=0,
        writers=(),
    )


def _model(model: config_lib.ModelConfig, mesh: Mapping[str, int]) -> config_lib.ModelConfig:
    heads = math.lcm(HEADS, mesh.get("tensor", 1))
    width = math.lcm(heads * HEAD_DIM, mesh.get("fsdp", 1))
    sizes = dict(width=width, depth=DEPTH, heads=heads, mlp=2 * width)
    trunk = {**model.trunk, **sizes}
    for name, size in dict(head_dim=HEAD_DIM, kv_heads=heads, unroll=1).items():
        if name in trunk:
            trunk[name] = size
    if "attention" in trunk:
        trunk["attention"] = attention_kernels.plain(trunk["attention"])
    if "experts" in trunk:
        small = dict(width=width, mlp=2 * width)
        trunk["experts"] = {name: {**spec, **small} for name, spec in trunk["experts"].items()}
    shared = {
        name: {key: min(value, DIM) if key == "dim" else value for key, value in spec.items()}
        for name, spec in model.shared.items()
    }
    return dataclasses.replace(
        model,
        dtype="float32",
        trunk=trunk,
        shared=shared,
        tokenizers={name: debug("tokenizers", spec) for name, spec in model.tokenizers.items()},
        heads={name: debug("heads", spec) for name, spec in model.heads.items()},
    )


def debug(folder: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """A plug-in's spec with its `DEBUG` laid over; UserError for an unknown type or no DEBUG."""
    if "type" not in spec:
        raise plugin.UserError(f"{folder}: a plug-in needs its type, got {dict(spec)}.")
    module = plugin.module(folder, spec["type"])
    if not hasattr(module, "DEBUG"):
        raise plugin.UserError(
            f"{folder}.{spec['type']}: the plug-in has no DEBUG; give the sizes of its smallest "
            "instance, for example DEBUG = dict(hidden=(8,)), or DEBUG = {}."
        )
    return {**spec, **module.DEBUG}


def _stream(
    full: config_lib.ModelConfig,
    small: config_lib.ModelConfig,
    stream: config_lib.StreamConfig,
    rows: int,
) -> config_lib.StreamConfig:
    """The stream with `rows` rows, without data; images as its tokenizers now want them."""
    image_sizes = dict(stream.image_sizes)
    for name in stream.groups:
        if name not in full.tokenizers:
            raise plugin.UserError(plugin.unknown("config.streams.groups", name, full.tokenizers))
        spec = small.tokenizers[name]
        if "image_size" in spec:
            image_sizes |= dict.fromkeys(specs.views(spec), tuple(spec["image_size"]))
    return dataclasses.replace(
        stream, batch_size=rows, image_sizes=image_sizes, mixture={}, validation={}
    )


def _rules(rules) -> tuple:
    """Sharding rows that leave an indivisible dimension whole: divisibility is not the subject."""
    loose = []
    for pattern, row in rules:
        if not isinstance(row, str | None | Mapping):
            row = {"axes": row, "or_replicate": True}
        elif isinstance(row, Mapping):
            row = {**row, "or_replicate": True}
        loose.append((pattern, row))
    return tuple(loose)


def _per_layer(factors: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Optimizer factors with one value per layer cut to the small trunk's first and last layer."""
    return {
        name: (value[0], value[-1]) if isinstance(value, tuple) and len(value) == depth else value
        for name, value in factors.items()
    }


# ------------------------------------------------------------------------- the parts of a run


def text_tokenizer(
    config: config_lib.TrainConfig,
) -> tuple[text_tokenizer_lib.TextTokenizer, str]:
    """(the config's tokenizer, its path), or a tiny one trained on built-in words and the names.

    The tiny one says that it has `config.text_pieces`, so that shapes are those of the file.
    """
    path = config.text_tokenizer
    if path and storage.is_file(path):
        return text_tokenizer_lib.TextTokenizer.load(path, config.text_pieces), path
    texts = list(WORDS)
    for spec in (*config.model.heads.values(), *config.model.shared.values()):
        texts += [text for key in ("names", "templates") for text in spec.get(key, ())]
    made = text_tokenizer_lib.TextTokenizer.train(text.replace("{name}", "") for text in texts)
    made.vocabulary_size = max(made.vocabulary_size, config.text_pieces or 0)
    return made, f"stand-in of {made.vocabulary_size} pieces"


def parts(
    config: config_lib.TrainConfig, tokenizer: Any
) -> tuple[build.Network, dict[str, dict[str, tuple]]]:
    """(network, objectives) of a config without data; statistics are the identity."""
    bodies = build.embodiments(config)
    spaces = build.action_spaces(bodies)
    network = build.network(
        config,
        spaces=spaces,
        text_tokenizer=tokenizer,
        proprio_constants=build.identity_constants(bodies),
    )
    objectives = build.objectives(config, build.make_context(config, spaces, tokenizer, {}))
    network.check(objectives)
    return network, objectives


# ------------------------------------------------------------------------------- training it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What one mesh made of the small config."""

    losses: list[float]
    gradient_norms: list[float]
    gradient: dict[str, np.ndarray]  # of the first train_step, by path
    change: dict[str, np.ndarray]  # of the parameters over all train_steps
    restart_bitwise: bool
    sharded: int  # parameters that no device holds whole
    parameters: int
    seconds: float


def train(config, network, objectives, batches, mesh) -> Trained:
    """Four train_steps, and 2 + 2 with a checkpoint between, on `mesh`."""
    begin = time.perf_counter()
    with meshes.use(mesh):
        plan = start.plan(config, network, batches[0], mesh)
        train_step = program.train_step(config, network, objectives, plan)
        placed = [arrays.global_batch(batch, mesh) for batch in batches]
        state = start.fresh(plan)
        first, metrics, gradient = _copy(state.trained), [], {}
        for batch in placed:
            state, found = train_step(state, batch)
            metrics.append({name: float(pair[0]) for name, pair in arrays.fetch(found).items()})
            # Adam's first moment after one train_step is the (clipped) gradient, scaled.
            gradient = gradient or first_moment(state.opt_state)
        four = _copy(state)
        again = _two_and_two(config, plan, train_step, placed)
        last = _copy(state.trained)
    leaves = jax.tree.leaves(plan.shardings.trained)
    return Trained(
        losses=[row["loss"] for row in metrics],
        gradient_norms=[row["gradient_norm"] for row in metrics],
        gradient=gradient,
        change=dict(trees.items(jax.tree.map(np.subtract, last, first))),
        restart_bitwise=same(four, again),
        sharded=sum(not leaf.is_fully_replicated for leaf in leaves),
        parameters=trees.count(plan.variables),
        seconds=round(time.perf_counter() - begin, 1),
    )


def first_moment(opt_state: Any) -> dict[str, np.ndarray]:
    """{path of a parameter: its momentum}; Muon and AdamW side by side keep one part each.

    UserError for an optimizer that keeps none (Adafactor): gradients could not be compared.
    """
    parts = [tree for _, tree in optax.tree_utils.tree_get_all_with_path(opt_state, "mu")]
    found = {path: leaf for tree in parts for path, leaf in trees.items(_copy(tree))}
    if not found:
        raise plugin.UserError(
            "config.optimizer.type: vla smoke compares gradients by the optimizer's first moment, "
            "and this one keeps none; expected 'adamw' or 'muon': --config.optimizer.type=adamw"
        )
    return found


def _two_and_two(config, plan, train_step, placed) -> dict[str, Any]:
    """The state after two train_steps, a checkpoint, its restoring, and two more."""
    state = start.fresh(plan)
    for batch in placed[:2]:
        state, _ = train_step(state, batch)
    with tempfile.TemporaryDirectory() as folder:
        saver = checkpoint.Checkpoints(folder, config, checkpoint.Assets())
        saver.save(2, state, {name: 2 * s.batch_size for name, s in config.streams.items()})
        saver.close()
        del state
        reader = checkpoint.Checkpoints(folder, config, checkpoint.Assets())
        state, meta = reader.restore(plan.abstract)
        reader.close()
    drawn = {name: meta.n[name] // stream.batch_size for name, stream in config.streams.items()}
    for batch in placed[max(drawn.values()) :]:
        state, _ = train_step(state, batch)
    return _copy(state)


def _copy(tree: Any) -> Any:
    """Numpy copies: the arrays themselves are donated to the next train_step."""
    return jax.tree.map(lambda leaf: np.array(jax.device_get(leaf)), tree)


# ------------------------------------------------------------------------------------- comparing


def same(a: Any, b: Any) -> bool:
    """Whether two trees of arrays agree bit for bit."""
    if trees.diff(a, b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b))
    return all(np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True) for x, y in pairs)


def difference(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """The norm of a − b over all leaves, relative to the norm of b; NaN and inf come out as inf."""
    apart = math.sqrt(sum(float(np.sum((a[p] - b[p]).astype(np.float64) ** 2)) for p in b))
    whole = math.sqrt(sum(float(np.sum(b[p].astype(np.float64) ** 2)) for p in b))
    value = apart / whole if whole else (0.0 if not apart else math.inf)
    return value if math.isfinite(value) else math.inf


def run(config: config_lib.TrainConfig, axes: Mapping[str, int]) -> dict[str, Any]:
    """The verdict as a dict for JSON: `agree`, the raw numbers, and what was compared.

    Needs as many devices as `axes` multiply to. Raises UserError for whatever in the config does
    not fit together.
    """
    begin = time.perf_counter()
    small = shrink(config, axes)
    tokenizer, origin = text_tokenizer(small)
    network, objectives = parts(small, tokenizer)
    batches = [
        synthetic.batches(small, tokenizer.vocabulary_size, start=step) for step in range(STEPS)
    ]
    count = math.prod(axes.values())
    one = meshes.make(dict(data=1), jax.devices()[:1])
    many = meshes.make(dict(axes), jax.devices()[:count])
    alone, spread = (train(small, network, objectives, batches, mesh) for mesh in (one, many))
    found = compare(alone, spread)
    return {
        "agree": all(found["within"].values()),
        **found,
        "mesh": dict(many.shape),
        "streams": {name: stream.batch_size for name, stream in small.streams.items()},
        "parameters": alone.parameters,
        "arrays": len(alone.change),
        "arrays_sharded": spread.sharded,
        "text_tokenizer": origin,
        "dtype": small.model.dtype,
        "seconds": round(time.perf_counter() - begin, 1),
        "seconds_one_device": alone.seconds,
        "seconds_mesh": spread.seconds,
    }


def compare(alone: Trained, spread: Trained) -> dict[str, Any]:
    """{"within": {what: bool}, raw numbers}; what is not finite, or empty, does not agree."""

    def worst(a, b):
        apart = [abs(x - y) / max(abs(y), 1e-12) for x, y in zip(a, b, strict=True)]
        return max(apart) if all(map(math.isfinite, apart)) else math.inf

    values = {
        "loss": worst(spread.losses, alone.losses),
        "gradient": difference(spread.gradient, alone.gradient),
        "change": difference(spread.change, alone.change),
    }
    leaves = {
        path: difference({path: g}, {path: alone.gradient[path]})
        for path, g in spread.gradient.items()
    }
    within = {f"{name}_difference": value <= TOLERANCE[name] for name, value in values.items()}
    within["restart_bitwise"] = alone.restart_bitwise and spread.restart_bitwise
    within["parameters_moved"] = any(np.any(leaf) for leaf in alone.change.values())
    return {
        "within": within,
        **{f"{name}_difference": value for name, value in values.items()},
        "tolerance": TOLERANCE,
        "restart_bitwise_one_device": alone.restart_bitwise,
        "restart_bitwise_mesh": spread.restart_bitwise,
        "losses_one_device": alone.losses,
        "losses_mesh": spread.losses,
        "unmoved": [path for path, leaf in alone.change.items() if not np.any(leaf)],
        "worst_gradient": max(leaves, key=leaves.get) if leaves else None,
    }
