"""T5's encoder against Hugging Face's numbers, and its weights out of files of every kind."""

import json
import math
import uuid

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from vla_jax import plugin, storage, trees, types
from vla_jax.backbones import t5
from vla_jax.models import pretrained

pytestmark = pytest.mark.slow  # golden arrays; contract tests run by default


SIZES = dict(vocabulary_size=20, width=8, depth=2, heads=2, head_dim=3, mlp=12, buckets=8)
CONTEXT = types.Context(name="language", width=16)
GATED = dict(SIZES, activation="gated-gelu")
B, T = 3, 6
IDS = np.random.default_rng(0).integers(1, 20, (B, T)).astype(np.int32)
MASK = np.arange(T)[None] < np.array([[T], [1], [4]])


def encoder(sizes, **changes):
    return plugin.build("backbones", dict(type="t5", **{**sizes, **changes}), CONTEXT)


def drawn(sizes, seed=1):
    """A tree of parameters of these sizes, in numpy."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: encoder(sizes).init(jax.random.key(0), IDS, MASK))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def foreign(params, gated=False, decoder=True):
    """The parameters as Hugging Face's PyTorch T5 names and lays them."""
    layers, names = params["layers"], dict(query="q", key="k", value="v")
    out = {"shared.weight": params["table"]}
    out["encoder.final_layer_norm.weight"] = params["final_norm"]["scale"]
    for i in range(len(layers["hidden"]["kernel"])):
        block = f"encoder.block.{i}.layer"
        out[f"{block}.0.layer_norm.weight"] = layers["attention_norm"]["scale"][i]
        out[f"{block}.1.layer_norm.weight"] = layers["mlp_norm"]["scale"][i]
        for ours, theirs in names.items():
            kernel = layers[ours]["kernel"][i]
            out[f"{block}.0.SelfAttention.{theirs}.weight"] = kernel.reshape(len(kernel), -1).T
        kernel = layers["out"]["kernel"][i]
        out[f"{block}.0.SelfAttention.o.weight"] = kernel.reshape(-1, kernel.shape[-1]).T
        mlp = dict(hidden="wi_1" if gated else "wi", mlp_out="wo") | (
            dict(gate="wi_0") if gated else {}
        )
        for ours, theirs in mlp.items():
            out[f"{block}.1.DenseReluDense.{theirs}.weight"] = layers[ours]["kernel"][i].T
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    out[bias] = params["buckets_bias"]
    if decoder:
        out["decoder.block.0.layer.0.SelfAttention.q.weight"] = np.ones((6, 8), np.float32)
        out["lm_head.weight"] = np.ones((20, 8), np.float32)
    return {name: np.ascontiguousarray(array) for name, array in out.items()}


def same(got, wanted):
    assert trees.paths(got) == trees.paths(wanted)
    for (path, a), (_, b) in zip(trees.items(got), trees.items(wanted)):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b, err_msg=path)


# ----------------------------------------------------------------------------------- numbers


def test_hugging_faces_numbers(fixtures_dir):
    golden = fixtures_dir / "octo_golden"
    arguments = t5.config_from_hf(golden / "hf" / "t5-tiny-golden")
    assert arguments["buckets"] == 32 and arguments["activation"] == "relu"
    seen = np.load(golden / "tiny" / "intermediates_item0.npz")
    flat = np.load(golden / "tiny" / "inputs.npz")
    ids, mask = (flat[f"task/language_instruction/{n}"] for n in ("input_ids", "attention_mask"))
    from flax import serialization

    file = golden / "tiny" / "ckpt" / "7" / "default" / "checkpoint"
    octo = serialization.msgpack_restore(file.read_bytes())["octo_transformer"]
    weights = t5.from_flax(octo["task_tokenizers_language"]["hf_model"], sizes=arguments)
    assert weights.unused == ()
    assert {**arguments, **weights.arguments} == arguments
    net = encoder(arguments)
    got = jax.jit(net.apply)({"params": weights.params}, ids.astype(np.int32), mask.astype(bool))
    there = "octo_transformer/task_tokenizers_language"
    for name in (f"{there}/hf_model/__call__/0/last_hidden_state", f"{there}/__call__/0/tokens"):
        np.testing.assert_allclose(
            got[:1], seen[name], rtol=0, atol=1e-5 * max(1, abs(seen[name]).max())
        )
    project = octo["task_language_projection"]
    after = seen["octo_transformer/task_language_projection/__call__/0"]
    np.testing.assert_allclose(
        got[:1] @ project["kernel"] + project["bias"][None, None],
        after, rtol=0, atol=1e-5 * max(1, abs(after).max()),
    )  # fmt: skip
    bias = seen[f"{there}/hf_model/encoder/block/0/__call__/0/1"]  # [1, N, T, T], with the mask
    rows = t5.bucket(np.arange(16)[None] - np.arange(16)[:, None])
    np.testing.assert_allclose(
        weights.params["buckets_bias"][rows].transpose(2, 0, 1), bias[0], atol=1e-6
    )


def test_buckets_are_those_of_a_plain_reference():
    def plain(distance, buckets, farthest):
        half, far = buckets // 2, abs(distance)
        row = half if distance > 0 else 0
        exact = half // 2
        if far < exact:
            return row + far
        share = math.log(far / exact) / math.log(farthest / exact)
        return row + min(half - 1, exact + int(share * (half - exact)))

    distance = np.arange(-300, 301)
    for buckets, farthest in ((32, 128), (8, 20)):
        got = t5.bucket(distance, buckets, farthest)
        assert got.tolist() == [plain(d, buckets, farthest) for d in distance.tolist()]
    assert t5.bucket(np.array([0, -1, 1, -7, -8, -300, 300])).tolist() == [0, 1, 17, 7, 8, 15, 31]


def by_hand(params, ids, mask, gated):
    """The encoder for one row, loop by loop, in float64."""

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale

    layers, x = params["layers"], params["table"][ids].astype(np.float64)
    place = np.arange(len(ids))
    bias = params["buckets_bias"][t5.bucket(place[None] - place[:, None], 8, 128)]
    for i in range(2):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
        y = norm(x, layer["attention_norm"]["scale"])
        for head in range(2):
            q, k, v = (y @ layer[n]["kernel"][:, head] for n in ("query", "key", "value"))
            scores = np.where(mask[None], q @ k.T + bias[..., head], -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = weights / weights.sum(-1, keepdims=True) @ v
            x = x + mixed @ layer["out"]["kernel"][head]
        y = norm(x, layer["mlp_norm"]["scale"])
        hidden = y @ layer["hidden"]["kernel"]
        if gated:
            hidden = np.asarray(jax.nn.gelu(y @ layer["gate"]["kernel"])) * hidden
        else:
            hidden = np.maximum(hidden, 0)
        x = x + hidden @ layer["mlp_out"]["kernel"]
    return norm(x, params["final_norm"]["scale"])


@pytest.mark.parametrize("sizes", (SIZES, GATED), ids=("relu", "gated-gelu"))
def test_the_encoder_is_the_loops_by_hand(sizes):
    params = jax.tree.map(lambda leaf: leaf * 0.3, drawn(sizes)["params"])
    apply = jax.jit(encoder(sizes).apply)
    got = apply({"params": params}, IDS, MASK)
    for row in range(B):
        wanted = by_hand(params, IDS[row], MASK[row], sizes is GATED)
        np.testing.assert_allclose(got[row], wanted, atol=2e-4)
    half = jax.jit(encoder(sizes, dtype="bfloat16").apply)({"params": params}, IDS, MASK)
    assert half.dtype == jnp.bfloat16 and abs(half.astype(np.float32) - got).mean() < 0.1
    # What stands in the padding is seen by none, and no text at all is finite.
    other = np.where(MASK, IDS, 7)
    np.testing.assert_array_equal(
        np.asarray(apply({"params": params}, other, MASK))[MASK], np.asarray(got)[MASK]
    )
    assert np.isfinite(apply({"params": params}, IDS, np.zeros_like(MASK))).all()


def test_errors_of_make_and_call():
    with pytest.raises(plugin.UserError, match="did you mean 'gated-gelu'"):
        encoder(SIZES, activation="gated_gelu")
    with pytest.raises(plugin.UserError, match="9 buckets"):
        encoder(SIZES, buckets=9)
    with pytest.raises(plugin.UserError, match="did you mean 'bfloat16'"):
        encoder(SIZES, dtype="bfloat")
    with pytest.raises(plugin.UserError, match=r"\(3, 6\) and the mask \(3, 5\)"):
        jax.eval_shape(lambda: encoder(SIZES).init(jax.random.key(0), IDS, MASK[:, :5]))


# ------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("sizes", (SIZES, GATED), ids=("relu", "gated-gelu"))
def test_safetensors_there_and_back(sizes, tmp_path):
    params = drawn(sizes)["params"]
    arrays = foreign(params, gated=sizes is GATED)
    safetensors.save_file(arrays, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        weights = t5.from_safetensors(path, sizes=sizes)
        same(weights.params, params)
        assert weights.arguments == {"activation": "relu", **sizes}
        assert weights.unused == (
            "decoder.block.0.layer.0.SelfAttention.q.weight",
            "lm_head.weight",
        )
    names = sorted(arrays)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        safetensors.save_file({name: arrays[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    same(t5.from_safetensors(tmp_path / "index.json").params, params)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(plugin.UserError, match="b.safetensors: no bytes"):
        t5.from_safetensors(tmp_path / "index.json")


def test_a_run_begins_with_it(tmp_path):
    params, spec = drawn(SIZES)["params"], dict(encoder=dict(SIZES, type="t5", dtype="bfloat16"))
    safetensors.save_file(foreign(params), tmp_path / "model.safetensors")
    target = {"params": {"tokenizers_words": {"encoder": jax.eval_shape(lambda: params)}}}
    target["params"]["trunk"] = np.ones(2)
    loaded = pretrained.load_encoder(target, "words", spec, str(tmp_path))
    same(loaded["params"]["tokenizers_words"]["encoder"], params)
    assert loaded["params"]["trunk"] is target["params"]["trunk"]
    for wrong in ({}, dict(encoder=None), dict(encoder=dict(type="small_stem", patch=8))):
        with pytest.raises(plugin.UserError, match="encoders.words: .* has no encoder"):
            pretrained.load_encoder(target, "words", wrong, str(tmp_path))
    spec["encoder"]["width"] = 9
    with pytest.raises(plugin.UserError, match="8.*9|9.*8"):
        pretrained.load_encoder(target, "words", spec, str(tmp_path))


def test_half_precision_and_either_name_of_the_table(tmp_path):
    arrays = foreign(drawn(SIZES)["params"])
    arrays["encoder.embed_tokens.weight"] = arrays["shared.weight"].copy()
    halves = {name: array.astype(jnp.bfloat16) for name, array in arrays.items()}
    safetensors.save_file(halves, tmp_path / "half.safetensors")
    weights = t5.from_safetensors(tmp_path / "half.safetensors")
    same(weights.params, jax.tree.map(lambda a: np.asarray(a, jnp.bfloat16).astype(np.float32),
                                      drawn(SIZES)["params"]))  # fmt: skip
    del arrays["shared.weight"]
    safetensors.save_file(arrays, tmp_path / "one.safetensors")
    same(t5.from_safetensors(tmp_path / "one.safetensors").params, drawn(SIZES)["params"])
    arrays["shared.weight"] = arrays["encoder.embed_tokens.weight"] + 1
    safetensors.save_file(arrays, tmp_path / "two.safetensors")
    with pytest.raises(plugin.UserError, match="shared.weight.*differ"):
        t5.from_safetensors(tmp_path / "two.safetensors")


def test_weights_in_a_bucket(tmp_path):
    safetensors.save_file(foreign(drawn(SIZES)["params"]), tmp_path / "m.safetensors")
    url, data = f"memory://{uuid.uuid4().hex}/t5", (tmp_path / "m.safetensors").read_bytes()
    storage.write(f"{url}/model.safetensors", data)
    same(t5.from_safetensors(url).params, drawn(SIZES)["params"])
    storage.write(f"{url}/model.safetensors", data[:-3])
    with pytest.raises(plugin.UserError, match=f"memory.*{len(data) - 3} bytes that are no whole"):
        t5.from_safetensors(f"{url}/model.safetensors")
    with pytest.raises(plugin.UserError, match="no config.json of a T5"):
        t5.config_from_hf(url)


QUERY = "encoder.block.1.layer.0.SelfAttention.q.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        ({QUERY: np.ones((6, 7), np.float32)}, rf"{QUERY} has shape \(6, 7\), expected \(6, 8\)"),
        ({QUERY: None}, f"missing: unknown '{QUERY}'"),
        ({"shared.weight": None}, "missing: unknown 'shared.weight'"),
        (
            {"encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": IDS * 1.0},
            "have no place in a T5 encoder",
        ),
        ({"encoder.final_layer_norm.weight": np.ones((1, 8), np.float32)}, "expected 1 axes"),
    ],
)
def test_weights_that_do_not_fit(change, message, tmp_path):
    arrays = {**foreign(drawn(SIZES)["params"]), **change}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    safetensors.save_file(arrays, tmp_path / "m.safetensors")
    with pytest.raises(plugin.UserError, match=message):
        t5.from_safetensors(tmp_path / "m.safetensors")


def test_files_that_are_no_t5(tmp_path):
    arrays = foreign(drawn(SIZES)["params"])
    with pytest.raises(plugin.UserError, match=r"shared.weight has shape \(20, 8\), .*\(30, 8\)"):
        safetensors.save_file(arrays, tmp_path / "m.safetensors")
        t5.from_safetensors(tmp_path / "m.safetensors", sizes={**SIZES, "vocabulary_size": 30})
    whole = (tmp_path / "m.safetensors").read_bytes()
    for content in (whole[:-3], whole[:50], b"", b"no such file"):
        (tmp_path / "cut.safetensors").write_bytes(content)
        with pytest.raises(plugin.UserError, match=f"{len(content)} bytes that are no whole"):
            t5.from_safetensors(tmp_path / "cut.safetensors")
    safetensors.save_file({"bert.embeddings": np.ones(3)}, tmp_path / "bert.safetensors")
    with pytest.raises(plugin.UserError, match="'shared.weight'.*Known: bert.embeddings"):
        t5.from_safetensors(tmp_path / "bert.safetensors")
    with pytest.raises(plugin.UserError, match="no such file"):
        t5.from_safetensors(tmp_path / "absent.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(plugin.UserError, match="neither of"):
        t5.from_safetensors(tmp_path / "empty")
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(plugin.UserError, match="no index"):
        t5.from_safetensors(tmp_path / "index.json")
    with pytest.raises(plugin.UserError, match="missing: unknown 'shared/embedding'"):
        t5.from_flax({"encoder": {}})


def test_configs(tmp_path):
    file = tmp_path / "config.json"
    base = dict(model_type="t5", vocab_size=32128, d_model=768, num_layers=12, num_heads=12,
                d_kv=64, d_ff=3072)  # fmt: skip
    file.write_text(json.dumps(base))
    arguments = t5.config_from_hf(tmp_path)
    assert arguments["max_distance"] == 128 and arguments["epsilon"] == 1e-6
    shapes = jax.eval_shape(lambda: encoder(arguments).init(jax.random.key(0), IDS, MASK))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 109_628_544  # T5-base's encoder
    for change, message in (
        (dict(model_type="bert"), "model_type is 'bert', expected 't5'"),
        (dict(feed_forward_proj="gated-silu"), "unknown 'gated-silu'"),
    ):
        file.write_text(json.dumps(base | change))
        with pytest.raises(plugin.UserError, match=message):
            t5.config_from_hf(file)
    file.write_text(json.dumps({k: v for k, v in base.items() if k != "d_kv"}))
    with pytest.raises(plugin.UserError, match="missing: unknown 'd_kv'"):
        t5.config_from_hf(file)
    file.write_text("{")
    with pytest.raises(plugin.UserError, match="no config.json"):
        t5.config_from_hf(file)
    with pytest.raises(plugin.UserError, match="no config.json"):
        t5.config_from_hf(tmp_path / "absent")
