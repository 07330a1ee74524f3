"""Every row of standardizers/oxe.py on random episodes, against what Octo and OpenVLA make of them
(oxe_cases.py, by hand), and the Bridge rows against Octo's own outputs."""

import json

import numpy as np
import pytest

from tests.data.standardizers.oxe_cases import CASES
from vla_jax import plugin
from vla_jax.data.sources import rlds
from vla_jax.data.standardizers import _expression, oxe
from vla_jax.types import VIEWS, SourceContext

T = 12
BODIES = {
    name: plugin.module("embodiments", name).EMBODIMENT for name in plugin.names("embodiments")
}


def random_column(kind, rng):
    if kind == "text":
        return [f"put the {rng.choice(['cup', 'bowl'])} down " for _ in range(T)]
    if kind == "flag":
        return rng.integers(0, 2, T).astype(bool)
    if kind == "ten flags":
        return rng.integers(0, 2, (T, 10))
    if kind == "code points":
        texts = [f"push {rng.choice(['stern', 'möwe 🐦'])}" for _ in range(T)]
        return np.array([[ord(x) for x in text.ljust(20, "\0")] for text in texts], np.int32)
    return rng.normal(0, 0.5, (T, *kind)).astype(np.float32)


def episode_of(name, rng):
    columns = {c: random_column(k, rng) for c, k in CASES[name][0].items() if k != "image"}
    for column, values in columns.items():
        if column.startswith("episode_metadata/"):
            columns[column] = values[0].strip()
    return columns


def texts(values):
    if isinstance(values, list):
        return [text.strip() for text in values]
    return ["".join(map(chr, row)).rstrip("\0") for row in values]


def test_every_row_has_a_case():
    assert set(CASES) == set(oxe.ROWS)


@pytest.mark.parametrize("name", oxe.ROWS)
def test_row(name):
    rng = np.random.default_rng(sum(map(ord, name)))
    features, expected = CASES[name]
    columns = episode_of(name, rng)
    full = {c if c.startswith("episode_") else f"steps/{c}": v for c, v in columns.items()}
    known = {c if c.startswith("episode_") else f"steps/{c}" for c in features}
    made = oxe.make(SourceContext(name="x", stream=""), row=name)
    read = made.columns(known)
    episode = made.episode({c: full[c] for c in read}, T, "shard 0: record 1")
    hand = expected(columns)
    steps = np.asarray(hand.get("steps", range(T)))
    np.testing.assert_array_equal(episode.steps, steps)
    np.testing.assert_allclose(episode.action, hand["action"], rtol=1e-6, atol=1e-6)
    assert episode.action.dtype == np.float32
    assert set(episode.proprio) == set(hand["proprio"])
    for group, values in hand["proprio"].items():
        np.testing.assert_allclose(episode.proprio[group], values, rtol=1e-6, atol=1e-6)
    said = texts(columns[hand["language"]]) if hand["language"] else [""] * T
    if name == "droid":
        wordings = zip(said, *(texts(columns[f"language_instruction_{i}"]) for i in (2, 3)))
        said = [w[0] if len(set(w)) == 1 else tuple(dict.fromkeys(w)) for w in wordings]
    assert list(episode.language) == [said[step] for step in steps]
    views = made.views(known)
    assert set(views) <= set(VIEWS)
    assert {features[image.removeprefix("steps/")] for image in views.values()} == {"image"}


@pytest.mark.parametrize("name", oxe.ROWS)
def test_row_fits_its_body(name):
    row, columns = oxe.ROWS[name], episode_of(name, np.random.default_rng(0))
    full = {c if c.startswith("episode_") else f"steps/{c}": v for c, v in columns.items()}
    episode = oxe.make(SourceContext(name="x", stream=""), row=name).episode(full, T, "e")
    body = BODIES[row.embodiment]
    (space,) = [s for s in body.action_spaces if s.name == row.action_space]
    assert episode.action.shape[1] == space.size
    sizes = {group.name: group.size for group in body.proprio}
    assert {g: v.shape[1] for g, v in episode.proprio.items()}.items() <= sizes.items()


def test_droid_keeps_the_wordings_there_are():
    columns = episode_of("droid", np.random.default_rng(0))
    columns["language_instruction"] = ["wipe it "] * 8 + [""] * 4
    columns["language_instruction_2"] = [" "] * 6 + ["clean it"] * 4 + [""] * 2
    columns["language_instruction_3"] = ["wipe it"] * 8 + [""] * 4
    full = {c if c.startswith("episode_") else f"steps/{c}": v for c, v in columns.items()}
    episode = oxe.make(SourceContext(name="x", stream=""), row="droid").episode(full, T, "e")
    both = ("wipe it", "clean it")
    assert episode.language == ["wipe it"] * 6 + [both] * 2 + ["clean it"] * 2 + [""] * 2


@pytest.mark.parametrize(
    "name, members, total",
    [  # counted in Octo's and OpenVLA's files
        ("oxe_magic_soup", 25, 30.77497585143),
        ("oxe_flex_act_soup", 32, 39.77497585143),
        ("rtx", 11, 19.37497585143),
        ("rtx_franka", 25, 41.57497585143),
        ("openvla_magic_soup", 23, 29.57497585143),
        ("oxe_magic_soup_plus", 27, 31.03497585143),
        ("oxe_magic_soup_plus_minus", 25, 31.3341046294),
        ("openvla_rtx", 10, 14.37497585143),
        ("openvla_rtx_franka", 24, 36.57497585143),
        ("bridge_rt_1", 2, 2.0),
        ("libero_mix", 4, 4.0),
    ],
)
def test_named_mixtures_are_the_published_ones(name, members, total):
    table = oxe.MIXTURES[name]
    weights = [w["weight"] if isinstance(w, dict) else w for w in table.values()]
    assert len(table) == members and sum(weights) == pytest.approx(total)


def test_magic_soups():
    soup, theirs = oxe.MIXTURES["oxe_magic_soup"], oxe.MIXTURES["oxe_magic_soup_plus"]
    assert soup["kuka"] == 0.8341046294 and soup["language_table"] == 0.1
    assert theirs["droid"] == 0.06 and "bridge_orig" in theirs and "bridge_dataset" not in theirs
    assert oxe.MIXTURES["rtx_franka"]["viola"] == 2.0  # twice in Octo's list: the first counts


@pytest.mark.parametrize("name", oxe.MIXTURES)
def test_members_of_a_named_mixture_have_rows(name):
    for folder, entry in oxe.MIXTURES[name].items():
        entry = entry if isinstance(entry, dict) else dict(weight=entry, row=folder)
        assert entry["weight"] > 0
        row = oxe.ROWS[entry["row"]]
        theirs = "openvla" in name or "plus" in name
        assert row.language is not None if theirs else entry["row"] == folder


def test_a_row_takes_changes():
    spec = dict(type="oxe", row="viola", language="observation/said", drop_first=2)
    made = plugin.build("data.standardizers", spec, SourceContext(name="x", stream=""))
    assert (made.row.language, made.row.drop_first) == ("observation/said", 2)
    assert oxe.ROWS["viola"].language is None
    spec["langage"] = spec.pop("language")
    with pytest.raises(plugin.UserError, match="unknown 'langage', did you mean 'language'"):
        plugin.build("data.standardizers", spec, SourceContext(name="x", stream=""))


def test_gripper_operations_are_octos(fixtures_dir):
    golden = np.load(fixtures_dir / "octo_golden/data/data.npz")
    for name in ("binarize", "rel2abs"):
        made = _expression.OPERATIONS[name][0](golden[f"unit/{name}_in"][:, None].astype(float))
        np.testing.assert_allclose(made[:, 0], golden[f"unit/{name}_out"], atol=1e-6)


def test_bridge_dataset_has_octos_actions_and_statistics(fixtures_dir):
    path = str(fixtures_dir / "bridge_dataset/1.0.0")
    parts = [
        rlds.recorded(path, standardizer=dict(type="oxe", row="bridge_dataset"), split=split)[0]
        for split in ("train", "val")
    ]
    folder = fixtures_dir / "octo_golden/data"
    golden = np.load(folder / "data.npz")
    octo = json.loads((folder / "dataset_statistics.json").read_text())
    assert sum(len(part.action) for part in parts) == octo["num_transitions"]
    for field in ("action", "proprio"):
        values = [part.action if field == "action" else part.proprio["ee"] for part in parts]
        values = np.concatenate(values).astype(np.float64)
        for name, statistic in (("mean", np.mean), ("std", np.std), ("max", np.max)):
            np.testing.assert_allclose(
                statistic(values, axis=0), octo[field][name], rtol=2e-4, atol=1e-6
            )
    mean, std = (np.array(octo["action"][k]) for k in ("mean", "std"))
    mean[6], std[6] = 0.0, 1.0
    raw = golden["raw/traj0/observation/state"]
    places = [i for i in range(25) if np.array_equal(parts[0].proprio["ee"][9 * i], raw[0])]
    ours = parts[0].action[9 * places[0] : 9 * places[0] + 9]
    theirs = golden["normal_nogoal/traj0/action"][:, 1, 0] * std + mean
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
