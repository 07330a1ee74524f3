"""Every file of data/sources/ keeps the contract; the files are found by listing the folder."""

import inspect
import json
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from tests.data import conftest as tiny
from tests.data.sources import hdf5_files, lerobot_sets
from tests.data.sources import test_image_text as pictures
from tests.data.sources import test_tfds_captions as captioned
from vla_jax import plugin, types
from vla_jax.codecs import text_tokenizer
from vla_jax.data import engine

NAMES = plugin.names("data.sources")
PROJECT = pathlib.Path(__file__).resolve().parents[3]
OTHER_PROCESS = """
from tests.data.sources import test_contract
for name in test_contract.NAMES:
    print(test_contract.make(name, {root!r}).fingerprint)
"""


def write(root) -> None:
    """The smallest data that the sources can read, below `root`."""
    tiny.write_folder(root / "arm_data" / "1.0.0", [tiny.episode(i) for i in range(4)])
    lerobot_sets.write_v21(root / "lerobot")
    hdf5_files.write_libero(root / "demo.hdf5", 4)
    captioned.write(root / "captioned", said="a red square")
    members = {}
    for i in range(12):
        members[f"{i}.png"], members[f"{i}.txt"] = pictures.png((20 * i, 0, 0)), b"a red square"
    pictures.write(root / "pictures.tar", members)
    records = []
    for i in range(12):
        (root / f"{i}.png").write_bytes(pictures.png((20 * i, 0, 0)))
        asked = {"from": "human", "value": "<image>\na red square"}
        turns = [asked, {"from": "gpt", "value": "[0.2, 0.2, 0.4, 0.4]"}]
        records.append({"id": i, "image": f"{i}.png", "conversations": turns})
    (root / "asked.json").write_text(json.dumps(records))
    text_tokenizer.TextTokenizer.train(
        ["a red square", "touch the cat", "[0.12, 0.34, 5.67, 8.9]"] * 3
    ).save(root / "words")


def given(name: str, root) -> dict:
    """What a source cannot do without; a new file of data/sources/ needs a line here."""
    return {
        "collage": dict(archives=("twemoji",)),
        "hdf5": dict(
            path=f"{root}/demo.hdf5",
            standardizer=hdf5_files.STANDARDIZER,
            holdout=0.5,
            augment=dict(color=0.2),
        ),
        "llava": dict(path=f"{root}/asked.json", images=str(root), holdout=0.5, unit="fraction"),
        "image_text": dict(path=f"{root}/pictures.tar", holdout=0.5),
        "lerobot": dict(
            path=f"{root}/lerobot",
            standardizer=lerobot_sets.STANDARDIZER,
            holdout=0.5,
            augment=dict(color=0.2),
        ),
        "tfds_captions": dict(path=f"{root}/captioned", holdout=0.5),
        "rlds": dict(path=f"{root}/arm_data", holdout=0.5, augment=dict(color=0.2)),
    }[name]


def make(name: str, root, **changes):
    """The plug-in's smallest instance."""
    settings = dict(
        name=name,
        stream="any",
        window=2,
        action_horizon=3,
        action_size=5,
        image_sizes={"primary": (16, 24)},
        max_tokens=64,
        text_tokenizer=text_tokenizer.TextTokenizer.load(f"{root}/words"),
        embodiments=(tiny.ARM,),
        action_spaces=tiny.ARM.action_spaces,
    )
    context = types.SourceContext(**(settings | changes))
    debug = plugin.module("data.sources", name).DEBUG
    return plugin.build("data.sources", {"type": name, **given(name, root), **debug}, context)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write(folder)
    return str(folder)


def draw(source, index: int, seed: int = 0) -> dict:
    """{path: array} of a row; every leaf must be numpy's."""
    row = leaves(source.sample(index, np.random.default_rng(seed)))
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in row.values())
    return row


def leaves(tree, path: str = "") -> dict:
    """{path: leaf}, as trees.items finds them; that file imports jax, and this one must not."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: v for name in tree for k, v in leaves(tree[name], f"{path}/{name}").items()}


def assert_same(a: dict, b: dict) -> None:
    assert list(a) == list(b)
    for path, value in a.items():
        assert value.dtype == b[path].dtype, path
        np.testing.assert_array_equal(value, b[path], err_msg=path)


@pytest.mark.parametrize("name", NAMES)
def test_plugin_form(name):
    module = plugin.module("data.sources", name)
    first, *rest = inspect.signature(module.make).parameters.values()
    assert first.name == "context" and all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in rest)
    assert set(module.DEBUG) <= {p.name for p in rest}
    assert module.__doc__ and module.make.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_length_and_fingerprint(name, root):
    source = make(name, root)
    assert isinstance(len(source), int) and len(source) > 2
    assert isinstance(source.fingerprint, str)
    held_out = make(name, root, train=False)
    assert len(held_out) > 0 and held_out.fingerprint != source.fingerprint


def test_fingerprints_are_the_same_in_another_process(root):
    """A resumed run compares them with those of the process that began it."""
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS.format(root=root)],
        cwd=PROJECT,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [make(name, root).fingerprint for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_depends_on_index_and_rng_alone(name, root):
    source, last = make(name, root), len(make(name, root)) - 1
    first = draw(source, last, seed=1)
    np.random.seed(5)  # noqa: NPY002 (a source that draws from it would differ below)
    others = [draw(source, 0, seed=1), draw(source, last, seed=2)]
    assert_same(draw(source, last, seed=1), first)
    assert_same(draw(make(name, root), last, seed=1), first)
    pixels = "/observation/images/primary"
    assert any(not np.array_equal(other[pixels], first[pixels]) for other in others)


@pytest.mark.parametrize("name", NAMES)
def test_a_pickled_source_is_the_same(name, root):
    source = make(name, root)
    draw(source, 0)  # files are open, caches are full
    again = pickle.loads(pickle.dumps(source))
    assert (again.fingerprint, len(again)) == (source.fingerprint, len(source))
    assert_same(draw(again, 1), draw(source, 1))


@pytest.mark.parametrize("name", NAMES)
def test_rows_make_a_batch(name, root):
    """Training and held-out rows alike: they are stacked, and seen by one compiled program."""
    mixed = [(make(name, root), 0), (make(name, root), 2), (make(name, root, train=False), 0)]
    rows = [source.sample(index, np.random.default_rng(index)) for source, index in mixed]
    batch = types.Batch.make(**engine.stack(rows), row_id=np.arange(3, dtype=np.uint32))
    assert batch.observation.images["primary"].shape == (3, 2, 16, 24, 3)
    assert batch.observation.timestep_mask[:, -1].all()  # the newest step is real
    assert batch.targets and set(batch.targets) == set(batch.target_masks)
    assert all(np.all(np.isfinite(value)) for value in batch.targets.values())
