"""An imported CrossFormer checkpoint says what CrossFormer's public code says, in plain numpy."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.models.importers import crossformer_files as files
from tests.models.importers.crossformer_numpy import Reference, may_see
from vla_jax import plugin, trees, types
from vla_jax.models import build
from vla_jax.models.importers import crossformer
from vla_jax.nn import visibility

ATOL = 1e-5
ROWS = 6  # one of each action space, and a second one of the first two
STREAM = "robot"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return crossformer.read(str(files.write(tmp_path_factory.mktemp("crossformer") / "ckpt")))


@pytest.fixture(scope="module")
def native(found):
    return crossformer.translate(found)


@pytest.fixture(scope="module")
def given() -> dict:
    return files.batch(ROWS)


@pytest.fixture(scope="module")
def batch(given) -> types.Batch:
    return crossformer.batch(given, tuple(files.ACTIONS))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(files.config()["model"])


@pytest.fixture(scope="module")
def wanted(reference, given) -> dict[str, np.ndarray]:
    return reference(given)


@pytest.fixture(scope="module")
def said(native, batch):
    """(tokens of every group, (answers, errors) of every head)."""

    @jax.jit
    def both(variables, batch):
        outputs = native.network.encode(variables, batch, STREAM)
        return outputs, native.network.apply(variables, batch, STREAM, {})

    return jax.device_get(both(native.variables, batch))


def close(got, wanted) -> None:
    assert got.shape == wanted.shape
    assert np.max(np.abs(got - wanted)) <= ATOL * max(1.0, np.max(np.abs(wanted)))


def test_every_token_group(said, wanted):
    assert set(said[0]) == {name.removeprefix("obs_") for name in wanted}
    for name, tokens in wanted.items():
        close(said[0][name.removeprefix("obs_")].final, tokens)


def test_every_head(said, wanted, reference):
    answers, _ = said[1]
    assert set(answers) == set(files.ACTIONS)
    for name in answers:
        close(answers[name]["action"], reference.actions(name, wanted))


def test_masks_are_the_same(native, given, batch, said, reference):
    layout = native.network.layout(STREAM)
    names = [group.name for group in layout.groups]  # the readouts after what is observed
    theirs = [name if name.startswith("readout_") else f"obs_{name}" for name in names]
    tokens = [(t, theirs[group]) for t, group in zip(layout.time, layout.group, strict=True)]
    rules = visibility.make(native.config.model.rules)
    assert np.array_equal(visibility.mask(layout, rules), may_see(tokens))
    for name, (_, _, mask) in reference.groups(given).items():
        assert np.array_equal(said[0][name.removeprefix("obs_")].valid, mask)


def test_the_loss_of_every_head_and_their_sum(native, said, batch, wanted, reference, given):
    """Masked by action space, over its own numbers alone, without a factor of the action's size."""
    context = build.make_context(native.config, native.spaces, None, {})
    answers, errors = said[1]
    total = 0.0
    for name, (objective, weight) in build.objectives(native.config, context)[STREAM].items():
        value = weight * objective(answers, errors, batch)[0]
        (mask,) = objective.mask(batch).values()
        own = value / mask.sum()
        np.testing.assert_allclose(own, reference.loss(name, wanted, given), rtol=1e-5)
        total += value / np.maximum(objective.count(batch), 1.0)  # as train/step.py has it
    np.testing.assert_allclose(total, reference.total(wanted, given), rtol=1e-5)


def test_every_parameter_has_its_place(native):
    assert native.report.missing == native.report.unused == ()
    theirs = files.parameters(files.config()["model"])
    ours = dict(trees.items(native.variables))
    assert sum(leaf.size for leaf in ours.values()) == sum(leaf.size for leaf in theirs.values())
    query = "params/trunk/layers/trunk/query/kernel"
    attention = f"{files.ROOT}/BlockTransformer_0/Transformer_0/encoderblock_1"
    their_query = theirs[f"{attention}/MultiHeadDotProductAttention_0/query/kernel"]
    assert np.array_equal(ours[query][1], their_query)


def test_the_encoders_of_its_own_config_have_their_place(found):
    """ResNet26FILM and ResNet26 at full width and depth, as pretrain_config.py has them."""
    model = files.config(("high", "nav"))["model"]
    for tokenizer in model["observation_tokenizers"].values():
        tokenizer["kwargs"]["encoder"]["kwargs"] = {}
    example = {**found.example, "observation": dict(found.example["observation"])}
    task = dict(found.example["task"])
    for view in ("image_high", "image_nav"):
        example["observation"][view] = np.zeros((1, files.WINDOW, 224, 224, 3), np.uint8)
        task[view] = np.zeros((1, 224, 224, 3), np.uint8)
    parameters = {p.replace(files.ROOT, "octo_transformer"): v for p, v in shapes(model).items()}
    whole = dataclasses.replace(
        found, config={**found.config, "model": model}, example=example | dict(task=task)
    )
    native = crossformer.translate(dataclasses.replace(whole, parameters=parameters))
    assert native.report.missing == native.report.unused == ()
    assert native.config.model.tokenizers["high"]["encoder"] == dict(type="resnet", width=64)
    layout = native.network.layout(STREAM)
    assert [layout.find(name).tokens for name in ("high", "nav")] == [49, 49]


def shapes(model: dict) -> dict[str, np.ndarray]:
    """The parameters of a model at 224 pixels, all the same number: they take no room."""
    pixels = {view: 224 for view in files.PIXELS}
    return {
        path: np.broadcast_to(np.float32(0.5), shape)
        for path, shape in files.shapes(model, pixels).items()
    }


def test_what_does_not_fit_is_named_in_their_words(found):
    first = f"{files.ROOT}/BlockTransformer_0/Transformer_0/encoderblock_0/LayerNorm_0/scale"
    canonical = {p.replace("octo_transformer", files.ROOT): p for p in found.parameters}

    def changed(path: str, value) -> crossformer.Native:
        parameters = dict(found.parameters)
        parameters.pop(canonical.get(path, path), None)
        if value is not None:
            parameters[canonical.get(path, path)] = value
        return crossformer.translate(dataclasses.replace(found, parameters=parameters))

    for path, value, message in (
        ("heads_nav/mean_proj/kernel", np.zeros((32, 7)), r"is \(32, 7\), expected \(32, 2\)"),
        (f"{files.ROOT}/obs_nav_projection/bias", None, r"missing    crossformer_transformer/obs"),
        (first, None, f"{first} is missing; expected"),
        ("octo_transformer/foreign", np.zeros(3), "left over  crossformer_transformer/foreign"),
        (f"{files.ROOT}/readout_nav_pos_embedding", np.zeros((1, 6, 3, 32)), r"\(6, 3, 32\)"),
    ):
        with pytest.raises(plugin.UserError, match=message):
            changed(path, value)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(num_preds=5), "num_preds=5, expected 2: the numbers of an action"),
        (dict(pool_strategy="sum"), "pool_strategy"),
        (dict(readout_key="nav"), "readout_key"),
    ],
)
def test_heads_that_are_not_crossformers(found, kwargs, message):
    heads = {**found.config["model"]["heads"]}
    heads["nav"] = {**heads["nav"], "kwargs": {**heads["nav"]["kwargs"], **kwargs}}
    with pytest.raises(plugin.UserError, match=f"crossformer config, heads.nav.*{message}"):
        crossformer.translate(found, heads=heads)


def test_statistics_of_several_action_spaces(native):
    entries = native.normalizer.entries
    assert [len(fields["action"].active) for fields in entries.values()] == [14, 7, 2, 12]
    aloha = entries["aloha_pen_uncap_diverse_dataset"]
    assert aloha["proprio/bimanual"].mode == "identity", "its skip_norm_keys"
    assert entries["a1"]["proprio/quadruped"].mode == "zscore"
    assert set(entries["bridge_dataset"]) == {"action"}
    assert [(space.name, space.size) for space in native.spaces] == [
        (name, size) for name, (_, size) in files.ACTIONS.items()
    ]


def test_what_is_left_out_is_said(native):
    (line,) = native.left_out
    assert "dropout_rate of the tokenizer bimanual (0.2)" in line
    assert native.config.model.trunk["dropout"] == 0.1
