"""T5's weights out of other people's files: numpy in, the parameters of `backbones/t5.py` out.

The names are Hugging Face's, in two dialects: Flax (also inside Octo's checkpoints) has kernels
[in, out] under `…/q/kernel`, PyTorch has them [out, in] under `….q.weight`. Layers are stacked,
heads get an axis of their own. Of a whole T5 the decoder stays on disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vla_jax import plugin, storage

ACTIVATIONS = ("relu", "gated-gelu")
KERNELS = ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")
TABLES = ("shared", "embed_tokens", "relative_attention_bias")
BIAS = "encoder/block/0/layer/0/SelfAttention/relative_attention_bias/embedding"
EMBEDDINGS = ("shared/embedding", "encoder/embed_tokens/embedding")  # one table under two names
# Keys of Hugging Face's config.json -> arguments of make, and what an absent key means there.
CONFIG = {
    "vocab_size": ("vocabulary_size", None),
    "d_model": ("width", None),
    "num_layers": ("depth", None),
    "num_heads": ("heads", None),
    "d_kv": ("head_dim", None),
    "d_ff": ("mlp", None),
    "relative_attention_num_buckets": ("buckets", 32),
    "relative_attention_max_distance": ("max_distance", 128),
    "layer_norm_epsilon": ("epsilon", 1e-6),
    "feed_forward_proj": ("activation", "relu"),
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """What was read: the encoder's parameters and sizes, and what the source has besides."""

    params: dict[str, Any]  # the tree of T5's parameters, float32
    arguments: dict[str, Any]  # of make, as far as shapes tell them
    unused: tuple[str, ...]  # the source's own keys that no parameter was made of (a decoder's)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Arrays by Hugging Face's Flax path, wherever they lie."""

    where: str
    keys: dict[str, str]  # path -> the source's own key
    shapes: dict[str, tuple[int, ...]]  # path -> shape as it lies there
    read: Callable[[str], np.ndarray]  # path -> array as it lies there
    turned: bool  # kernels are [out, in]

    def lies(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """How an array [in, out] lies there."""
        return shape[::-1] if self.turned and path.endswith("/kernel") else shape

    def shape(self, path: str) -> tuple[int, ...]:
        """[in, out] of what lies at `path`; UserError naming what there is when nothing does."""
        if path not in self.keys:
            own = path.rpartition("/")[0].replace("/", ".") + ".weight" if self.turned else path
            raise plugin.UserError(
                plugin.unknown(f"{self.where}: missing", own, _some(self.keys.values()))
                + " Expected the weights of a T5 encoder, whole."
            )
        return self.lies(path, self.shapes[path])

    def array(self, path: str) -> np.ndarray:
        """float32 [in, out]."""
        found = np.asarray(self.read(path), np.float32)
        return found.T if self.turned and path.endswith("/kernel") else found


def from_flax(
    tree: Mapping[str, Any],
    *,
    sizes: Mapping[str, Any] | None = None,
    where: str = "T5 weights",
) -> Weights:
    """The weights in the tree `hf_model` of an Octo checkpoint, {"encoder": …, "shared": …}.

    With `sizes` (arguments of make) shapes must be theirs, else only agree with one another.
    UserError for a missing key, and for another shape, with the key and both shapes.
    """
    flat = dict(_flat(tree)) if isinstance(tree, Mapping) else {}
    return _weights(
        _Source(
            where=where,
            keys={path: path for path in flat},
            shapes={path: tuple(np.shape(leaf)) for path, leaf in flat.items()},
            read=flat.__getitem__,
            turned=False,
        ),
        sizes,
    )


def from_safetensors(path: storage.Path, *, sizes: Mapping[str, Any] | None = None) -> Weights:
    """The weights in `model.safetensors`, in the shards of an index (`.json`), or in their folder.

    Those at a URL are copied to this machine while they are read. UserError as `from_flax`, and for
    a file that is missing, truncated or no safetensors.
    """
    import ml_dtypes  # numpy learns bfloat16 from it
    import safetensors

    assert ml_dtypes
    files, own = {}, {}  # file -> its reader, the file's key -> (file, shape)
    with contextlib.ExitStack() as stack:
        for file in _files(path):
            size = "no"
            try:
                local = stack.enter_context(storage.fetched(file))
                size = os.path.getsize(local)
                files[file] = safetensors.safe_open(local, "numpy")
                for key in files[file].keys():
                    own[key] = file, tuple(files[file].get_slice(key).get_shape())
            except (safetensors.SafetensorError, OSError) as error:
                raise plugin.UserError(
                    f"{file}: {size} bytes that are no whole safetensors file ({error}); copy it "
                    "again"
                ) from error
        keys = {_flax_path(key): key for key in own}
        return _weights(
            _Source(
                where=str(path),
                keys=keys,
                shapes={path: own[key][1] for path, key in keys.items()},
                read=lambda path: files[own[keys[path]][0]].get_tensor(keys[path]),
                turned=True,
            ),
            sizes,
        )


def config_from_hf(path: storage.Path) -> dict[str, Any]:
    """Arguments of make from Hugging Face's `config.json` (or its folder).

    UserError for a missing or broken file, another architecture than T5, and an MLP not known here.
    """
    path = storage.join(path, "config.json") if storage.is_dir(path) else path
    try:
        found = json.loads(storage.read(path))
    except (OSError, ValueError, plugin.UserError) as error:
        raise plugin.UserError(f"{path}: no config.json of a T5 ({error})") from error
    kind = found.get("model_type") if isinstance(found, dict) else None
    if kind not in ("t5", "mt5"):
        raise plugin.UserError(f"{path}: model_type is {kind!r}, expected 't5'")
    arguments = {}
    for key, (name, default) in CONFIG.items():
        if key not in found and default is None:
            raise plugin.UserError(plugin.unknown(f"{path}: missing", key, found))
        arguments[name] = found.get(key, default)
    if arguments["activation"] not in ACTIVATIONS:
        where = f"{path}: feed_forward_proj"
        raise plugin.UserError(plugin.unknown(where, arguments["activation"], ACTIVATIONS))
    return arguments


# ------------------------------------------------------------------------------- the pieces


def _weights(source: _Source, sizes: Mapping[str, Any] | None) -> Weights:
    found = _sizes(source)
    wanted = {**found, **{k: v for k, v in (sizes or {}).items() if k in found}}
    embedding = next((path for path in EMBEDDINGS if path in source.keys), EMBEDDINGS[0])
    used, params = {embedding}, {}
    for name, (path, shape, ours) in _table(wanted, embedding).items():
        paths = [path.format(layer) for layer in range(wanted["depth"])] if "{}" in path else [path]
        for path in paths:
            if source.shape(path) != shape:
                raise plugin.UserError(
                    f"{source.where}: {source.keys[path]} has shape {source.shapes[path]}, "
                    f"expected {source.lies(path, shape)}, as a T5 encoder of these sizes has it: "
                    f"{wanted}"
                )
        used |= set(paths)
        arrays = [source.array(path).reshape(ours) for path in paths]
        _put(params, name, np.stack(arrays) if name.startswith("layers/") else arrays[0])
    twin = set(EMBEDDINGS) & set(source.keys) - used
    if twin and not np.array_equal(source.array(min(twin)), params["table"]):
        raise plugin.UserError(
            f"{source.where}: {[source.keys[path] for path in EMBEDDINGS]} differ; in a T5 they "
            "are one table"
        )
    left = [path for path in source.keys if path not in used and path not in twin]
    foreign = [source.keys[path] for path in left if path.startswith("encoder/")]
    if foreign:
        raise plugin.UserError(
            f"{source.where}: {_some(foreign)} have no place in a T5 encoder of these sizes: "
            f"{wanted}; this is another network, or one of another depth"
        )
    return Weights(params, wanted, tuple(sorted(source.keys[path] for path in left)))


def _sizes(source: _Source) -> dict[str, Any]:
    """Arguments of make that the shapes tell."""
    embedding = next((path for path in EMBEDDINGS if path in source.keys), EMBEDDINGS[0])
    attention, mlp = "encoder/block/0/layer/0/SelfAttention", "encoder/block/0/layer/1"
    gated = f"{mlp}/DenseReluDense/wi_0/kernel" in source.keys
    layers = [int(n) for path in source.keys for n in re.findall(r"^encoder/block/(\d+)/", path)]
    shapes = {
        "vocabulary": (embedding, 2),
        "norm": ("encoder/final_layer_norm/weight", 1),
        "bias": (BIAS, 2),
        "query": (f"{attention}/q/kernel", 2),
        "hidden": (f"{mlp}/DenseReluDense/{'wi_0' if gated else 'wi'}/kernel", 2),
    }
    found = {}
    for name, (path, ndim) in shapes.items():
        found[name] = source.shape(path)
        if len(found[name]) != ndim:
            raise plugin.UserError(
                f"{source.where}: {source.keys[path]} has shape {source.shapes[path]}, expected "
                f"{ndim} axes"
            )
    buckets, heads = found["bias"]
    if found["query"][1] % heads:
        raise plugin.UserError(
            f"{source.where}: {source.keys[shapes['query'][0]]} has shape "
            f"{source.shapes[shapes['query'][0]]}, which does not divide into the {heads} heads of "
            f"{source.keys[BIAS]}, shape {source.shapes[BIAS]}"
        )
    return dict(
        vocabulary_size=found["vocabulary"][0],
        width=found["norm"][0],
        depth=max(layers) + 1,
        heads=heads,
        head_dim=found["query"][1] // heads,
        mlp=found["hidden"][1],
        buckets=buckets,
        activation="gated-gelu" if gated else "relu",
    )


def _table(sizes: Mapping[str, Any], embedding: str) -> dict[str, tuple[str, tuple, tuple]]:
    """Our path -> (Hugging Face's, shape [in, out] there, our shape of one layer)."""
    D, F, N, H = (sizes[name] for name in ("width", "mlp", "heads", "head_dim"))
    block = "encoder/block/{}/layer/"
    attention, mlp = block + "0/SelfAttention/", block + "1/DenseReluDense/"
    into, out = (D, N * H), (N * H, D)
    gated = sizes["activation"] != "relu"
    table = {
        "table": (embedding, (sizes["vocabulary_size"], D), (sizes["vocabulary_size"], D)),
        "buckets_bias": (BIAS, (sizes["buckets"], N), (sizes["buckets"], N)),
        "layers/attention_norm/scale": (block + "0/layer_norm/weight", (D,), (D,)),
        "layers/query/kernel": (attention + "q/kernel", into, (D, N, H)),
        "layers/key/kernel": (attention + "k/kernel", into, (D, N, H)),
        "layers/value/kernel": (attention + "v/kernel", into, (D, N, H)),
        "layers/out/kernel": (attention + "o/kernel", out, (N, H, D)),
        "layers/mlp_norm/scale": (block + "1/layer_norm/weight", (D,), (D,)),
        "layers/hidden/kernel": (mlp + ("wi_1" if gated else "wi") + "/kernel", (D, F), (D, F)),
        "layers/mlp_out/kernel": (mlp + "wo/kernel", (F, D), (F, D)),
        "final_norm/scale": ("encoder/final_layer_norm/weight", (D,), (D,)),
    }
    if gated:
        table["layers/gate/kernel"] = (mlp + "wi_0/kernel", (D, F), (D, F))
    return table


def _files(path: storage.Path) -> list[str]:
    """The safetensors files that `path` stands for."""
    path = storage.normal(path)
    if storage.is_dir(path):
        names = ("model.safetensors", "model.safetensors.index.json")
        there = [name for name in names if storage.is_file(storage.join(path, name))]
        if not there:
            held = _some(storage.names(path))
            raise plugin.UserError(f"{path}: neither of {names} is there, only {held}")
        path = storage.join(path, there[0])
    if not storage.is_file(path):
        raise plugin.UserError(f"{path}: no such file; expected T5's model.safetensors")
    if not path.endswith(".json"):
        return [path]
    try:
        names = sorted(set(json.loads(storage.read(path))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise plugin.UserError(f"{path}: no index of safetensors ({error!r})") from error
    return [storage.join(storage.parent(path), name) for name in names]


def _flax_path(key: str) -> str:
    """ "encoder.block.0.layer.0.SelfAttention.q.weight" → "encoder/block/…/q/kernel"."""
    *path, leaf = key.split(".")
    if leaf == "weight" and path:
        leaf = "kernel" if path[-1] in KERNELS else "embedding" if path[-1] in TABLES else leaf
    return "/".join((*path, leaf))


def _flat(tree: Mapping[str, Any], *path: str):
    """(path, leaf) pairs of nested tables."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, *path, str(key))
        else:
            yield "/".join((*path, str(key))), value


def _put(tree: dict, path: str, value: np.ndarray) -> None:
    *parents, leaf = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[leaf] = value


def _some(names, count: int = 8) -> list[str]:
    """A few of many names."""
    names = sorted(names)
    return names if len(names) <= count else [*names[:count], f"… {len(names) - count} more"]
