"""Losses at the stored time and noise, gradients, Octo's optimizer steps with our gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tools.octo_golden.golden import ATOL, GRADIENTS, OUTPUTS, Golden
from tools.octo_golden.heads import losses, shape
from tools.octo_golden.parameters import theirs
from vla_jax import trees
from vla_jax.models.importers import _params

# Octo's pretraining config; the goldens warm up in 2 steps, as their README says.
PEAK, TIMESCALE, DECAY, CLIP = 3e-4, 10_000, 0.1, 1.0
WARMUP, OFFICIAL_WARMUP = 2, 2000
NOISE = 1e-6  # of the gradient's norm: what rounding leaves of a gradient that is zero
GRADS, NORMS = "grads.npz", "grad_norms.json"
DRAWN = "time and noise: given to our loss in place of Octo's draws"


def compare(golden: Golden) -> None:
    """loss/…, grads.npz, grad_norms.json, lr/…, train/stepN/…, and where the parameters went."""
    golden.attempt(_rates)
    held = [(OUTPUTS, name) for p in ("loss/", "train/step") for name in golden.names(p)]
    if held and _dropout(golden):
        files = [f for f in golden.files if f == GRADS or f.startswith("params_delta_after_")]
        held += [(file, name) for file in files for name in golden.files[file]]
        for file, name in held:
            golden.excuse(name, "trained with dropout, whose random bits are not stored", file)
        return
    if golden.names("loss/"):
        golden.attempt(_loss)
    elif golden.facts(NORMS):
        golden.attempt(_norms_by_head)
    if golden.names("train/step"):
        golden.attempt(_steps)


def _dropout(golden: Golden) -> bool:
    """Whether Octo's network drops something out in training: its defaults do, MAPHeads always."""
    model = golden.checkpoint.config["model"]
    sizes, head = model["transformer_kwargs"], model["heads"][golden.acting]["kwargs"]
    seen = (spec["kwargs"] for spec in model["observation_tokenizers"].values())
    return (
        any(sizes.get(f"{what}dropout_rate", 0.1) for what in ("", "attention_"))
        or bool(head.get("dropout_rate"))
        or golden.native().config.model.heads[golden.acting].get("pool") == "map"
        or any(kwargs.get("use_token_learner") for kwargs in seen)
    )


def _rates(golden: Golden) -> None:
    if "lr/official_steps" in golden.outputs:
        steps = golden.take("lr/official_steps")
        got = np.array([rate(OFFICIAL_WARMUP)(step) for step in steps])
        golden.compare("lr/official_values", got, relative=True)


def rate(warmup: int):
    """Octo's rsqrt schedule (train_utils.py): linear from 0, then peak / √((s + T) / T)."""

    def value(step):
        done = jnp.maximum(step - warmup, 0)
        after = PEAK / jnp.sqrt((done + TIMESCALE) / TIMESCALE)
        return jnp.where(step < warmup, PEAK * step / warmup, after)

    return value


# ------------------------------------------------------------------------------ loss and gradient


def injected(golden: Golden, prefix: str) -> dict[str, dict[str, np.ndarray]]:
    """{head: the stored time [B, W, n] and noise [B, W, n, C, A]} of Octo's [n, B, W, 1 or C · A].

    Empty where the folder stores none: such a head draws nothing.
    """
    if f"{prefix}/noise" not in golden.outputs:
        return {}
    parts = (golden.take(f"{prefix}/{part}", why=DRAWN) for part in ("time", "noise"))
    time, noise = (np.moveaxis(part, 0, 2) for part in parts)
    noise = noise.reshape(*noise.shape[:-1], *shape(golden.native(), golden.acting))
    return {golden.acting: dict(time=time[..., 0], noise=noise)}


def _loss(golden: Golden) -> None:
    native, batch, name = golden.native(), golden.batch(), golden.acting
    keys = injected(golden, "loss")

    def loss(variables):
        found = losses(native, variables, batch, keys)[name]
        return found["loss"], found["mse"]

    (value, mse), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(native.variables)
    for part in ("loss", "value"):
        golden.compare(f"loss/{part}", value, relative=True)
    golden.compare("loss/mse", mse, relative=True)
    golden.attempt(_gradient, dict(trees.items(jax.device_get(gradient))))


def _gradient(golden: Golden, got: Mapping[str, np.ndarray]) -> None:
    """grads.npz, number by number and as a whole, and the norms of grad_norms.json.

    The tolerance is that of the whole gradient, 1e-4 of its norm; number by number 1e-5 of the
    array's largest or of 1, as for everything else.
    """
    stored = golden.files.get(GRADS, {})
    found = theirs(got, stored)
    for name, array in found.items():
        golden.compare(name, array, file=GRADS)
    if stored and set(found) == set(stored):
        whole = _length(stored.values())
        apart = _length(found[name] - stored[name] for name in stored)
        golden.settle(f"{GRADS} as a whole", apart, GRADIENTS * whole)
        golden.compare("loss/grad_global_norm", _length(found.values()), relative=True)
    else:
        trained = {path: leaf for path, leaf in got.items() if not frozen(path)}
        golden.compare("loss/grad_global_norm", _length(trained.values()), relative=True)
    norms = golden.facts(NORMS)
    if norms:
        _norms(golden, NORMS, norms, theirs(got, _shapes(golden, norms)))


def _norms_by_head(golden: Golden) -> None:
    """grad_norms.json where it tells of each head's loss by itself: {head: {path: norm}}."""
    native, batch = golden.native(), golden.batch()

    def loss(variables, weights):
        found = losses(native, variables, batch, {})
        return sum(weights[name] * found[name]["loss"] for name in found)

    gradient = jax.jit(jax.grad(loss))  # compiled once: the weights choose the head
    heads = list(native.config.model.heads)
    for head, norms in golden.facts(NORMS).items():
        if head not in heads or native.config.model.heads[head]["type"] == "diffusion":
            golden.excused[f"{NORMS}:{head}"] = "of a loss whose noise is not stored"
            continue
        weights = {name: jnp.float32(name == head) for name in heads}
        got = dict(trees.items(jax.device_get(gradient(native.variables, weights))))
        _norms(golden, f"{NORMS}:{head}", norms, theirs(got, _shapes(golden, norms)))


def _norms(golden: Golden, where: str, norms: Mapping[str, float], got: Mapping) -> None:
    """The norm of each parameter's gradient, against 1e-4 of it or of 1."""
    for path, norm in norms.items():
        known = f"{where}:{path}"
        if path in got:
            golden.settle(known, abs(_length([got[path]]) - norm), GRADIENTS * max(1.0, norm))
        elif not norm:  # the text encoder's: frozen, and no parameter of this table
            golden.settle(known, 0.0, 0.0)
        else:
            golden.fail(known, "no parameter of ours")


def _shapes(golden: Golden, paths) -> dict[str, np.ndarray]:
    read = golden.checkpoint.parameters
    return {path: read[path] for path in paths if path in read}


def _length(arrays) -> float:
    return float(np.sqrt(sum(np.sum(np.asarray(array, np.float64) ** 2) for array in arrays)))


# -------------------------------------------------------------------------------- optimizer steps


def frozen(path: str) -> bool:
    """Whether Octo's `*hf_model*` freezes a parameter of ours: those of the text encoder."""
    return "tokenizers_language/encoder/" in path


def _optimizer(golden: Golden, variables: Any) -> optax.GradientTransformation:
    """Octo's AdamW: what Octo calls a kernel decays, and the text encoder stays as it is."""
    origins = _params.origins(golden.checkpoint.parameters)
    paths = [path for path, _ in trees.items(variables)]
    decays = trees.unflatten({p: any("kernel" in o for o in origins.get(p, ())) for p in paths})
    labels = trees.unflatten({path: "frozen" if frozen(path) else "trained" for path in paths})
    adam = optax.adamw(rate(WARMUP), weight_decay=DECAY, mask=decays, mu_dtype=jnp.bfloat16)
    inner = optax.chain(optax.clip_by_global_norm(CLIP), adam)
    return optax.multi_transform({"trained": inner, "frozen": optax.set_to_zero()}, labels)


def _steps(golden: Golden) -> None:
    native, batch, name = golden.native(), golden.batch(), golden.acting
    optimizer = _optimizer(golden, native.variables)

    def length(tree):
        return optax.tree.norm([leaf for path, leaf in trees.items(tree) if not frozen(path)])

    @jax.jit
    def train_step(variables, state, keys):
        def loss(variables):
            found = losses(native, variables, batch, keys)[name]
            return found["loss"], found["mse"]

        (value, mse), gradient = jax.value_and_grad(loss, has_aux=True)(variables)
        updates, state = optimizer.update(gradient, state, variables)
        facts = dict(loss=value, mse=mse, grad_norm=length(gradient), update_norm=length(updates))
        facts["param_norm"] = length(variables)
        return optax.apply_updates(variables, updates), state, facts, gradient

    variables, state = native.variables, optimizer.init(native.variables)
    count = len({array.split("/")[1] for array in golden.names("train/step")})
    gradients = []
    for step in range(count):
        prefix = f"train/step{step}"
        keys = injected(golden, prefix)
        variables, state, facts, gradient = train_step(variables, state, keys)
        facts["learning_rate"] = rate(WARMUP)(step)
        for part, value in facts.items():
            golden.compare(f"{prefix}/{part}", np.asarray(value), relative=True)
        gradients.append(dict(trees.items(jax.device_get(gradient))))
        golden.attempt(_moved, dict(trees.items(jax.device_get(variables))), gradients)


def _moved(golden: Golden, after: Mapping[str, Any], gradients: Sequence[Mapping]) -> None:
    """params_delta_after_N_steps.npz and the norms of params_after_N_steps.json.

    Adam divides a gradient by its own size: of one that is zero but for rounding (a bias of keys,
    or before a group norm of single features) it makes steps that nothing determines.
    """
    steps = len(gradients)
    deltas, norms = f"params_delta_after_{steps}_steps.npz", f"params_after_{steps}_steps.json"
    before = dict(trees.items(golden.native().variables))
    moved = {path: after[path].astype(np.float64) - before[path] for path in after}
    told = golden.facts(norms)
    like = golden.files.get(deltas, {}) | _shapes(golden, told)
    whole = max(_length(gradient.values()) for gradient in gradients)
    found, ends = theirs(moved, like), theirs(after, like)
    sizes = [theirs(gradient, like) for gradient in gradients]
    farthest = 1.01 * sum(float(rate(WARMUP)(step)) for step in range(steps))  # Adam's, bfloat16
    for name in told.keys() - found.keys():  # frozen, and none of the importer's table
        still = dict(norm=_length([golden.checkpoint.parameters[name]]), delta_norm=0.0)
        for part, norm in told[name].items():
            golden.settle(f"{norms}:{name}/{part}", abs(still[part] - norm), ATOL * max(1.0, norm))
    for name, array in found.items():
        size = max(_length([gradient[name]]) for gradient in sizes)
        stored = golden.files.get(deltas, {}).get(name, np.zeros(1))
        if size <= NOISE * whole and np.max(np.abs(stored)) <= farthest:
            why = f"its gradient is zero but for rounding ({size:.0e} of {whole:.0f}), and Adam"
            why += " divides by that: no step is the right one"
            golden.excuse(name, why, deltas)
            golden.excused |= {f"{norms}:{name}/{part}": why for part in told.get(name, ())}
            continue
        golden.compare(name, array, file=deltas)
        for part, value in (("norm", ends[name]), ("delta_norm", array)):
            if part in told.get(name, ()):
                norm = told[name][part]
                apart = abs(_length([value]) - norm)
                golden.settle(f"{norms}:{name}/{part}", apart, ATOL * max(1.0, norm))
