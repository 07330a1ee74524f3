"""One table of faults over RLDS, LeRobot v2.1 and v3.0, and HDF5.

Each is an error that names file, episode and field (where it is of one), or, where the config
allows it, a counted skip: of the episode where the table is made, or of the sample where it is
drawn, which the next index of the same source replaces.
"""

import json
import pathlib

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data import conftest as rlds
from tests.data.sources import hdf5_files
from tests.data.sources import lerobot_sets as sets
from vla_jax import plugin
from vla_jax.data import mixture, recordings

PRIMARY, ACTION = "steps/observation/images/primary", "steps/action"
TOP = "observation.images.top"
NAN = np.where(np.arange(28).reshape(7, 4) == 14, np.nan, 1).astype(np.float32)


def write_rlds(path, columns=None, change=None, episodes=4):
    made = [rlds.episode(i, **((columns or {}) if i == 1 else {})) for i in range(episodes)]
    rlds.write_folder(path, [{k: v for k, v in e.items() if v is not None} for e in made], shards=1)
    if change:
        change(next(path.glob("*.tfrecord-*")))
    return dict(type="rlds", path=str(path))


def cut(file, size=5):
    file.write_bytes(file.read_bytes()[:-size])


def flip(file, offset):
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)


def write_v21(path, change=None, then=None, **arguments):
    spec = dict(type="lerobot", standardizer=sets.STANDARDIZER)
    spec["path"] = sets.write_v21(path, **({"kind": "image", "change": change} | arguments))
    if then:
        then(path)
    return spec


def write_v30(path, then=None, **arguments):
    sets.write_v30(path, **arguments)
    if then:
        then(path)
    return dict(type="lerobot", standardizer=sets.STANDARDIZER, path=str(path))


def one(name, value):
    """A change of a column of episode 1."""

    def change(episode, columns):
        if episode == 1:
            columns[name] = value(columns[name])

    return change


def at(row, value):
    def change(column):
        values = column.to_pylist()
        values[row] = value
        return pa.array(values, column.type)

    return change


def nothing(column):
    return pa.array([None] * len(column), column.type)


def integers(column):
    return pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(28, np.int64)), 4)


def without_top(path):
    file = path / DATA21
    pq.write_table(pq.read_table(file).drop_columns([TOP]), file)


def flip_action(name):
    """One bit of the action's page, in the file's last row group."""

    def change(path):
        group = pq.ParquetFile(path / name).metadata.row_group(0)
        kinds = [group.column(i) for i in range(group.num_columns)]
        (column,) = [c for c in kinds if c.path_in_schema.startswith("action.")]
        first = column.dictionary_page_offset or column.data_page_offset
        flip(path / name, first + column.total_compressed_size - 8)

    return change


def twice(path):
    file = path / "meta/episodes.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], lines[1]]))


def twice30(path):
    file = path / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.set_column(0, "episode_index", pa.array([0, 1, 2, 1])), file)


def no_text(path):
    file = path / "meta/tasks.jsonl"
    file.write_bytes(file.read_bytes().replace(b"cat", b"c\xfft"))


def write_hdf5(path, change=None, then=None, said="touch the dog"):
    hdf5_files.write_libero(path / "a.hdf5", change=change, said=said)
    hdf5_files.write_libero(path / "b.hdf5", 1, said=said)
    if then:
        then(path)
    return dict(type="hdf5", path=str(path), standardizer=hdf5_files.STANDARDIZER)


def dataset(name, value, **options):
    def change(file):
        demo = file["data/demo_1"]
        if name in demo:
            del demo[name]
        if value is not None:
            demo.create_dataset(name, data=value, **options)

    return change


def flip_hdf5(path):
    with h5py.File(path / "a.hdf5") as file:
        offset = file["data/demo_1/actions"].id.get_chunk_info(0).byte_offset
    flip(path / "a.hdf5", offset + 9)


def no_actions():
    return np.where(np.arange(49).reshape(7, 7) == 23, np.nan, 1.0)


RECORD, DATA21, DATA30 = (
    "arm_data-train.tfrecord-00000-of-00001",
    "data/chunk-000/episode_000001.parquet",
    "data/chunk-000/file-001.parquet",
)
NO_STEPS = {ACTION: np.zeros(0), "steps/language_instruction": [], PRIMARY: [],
            "steps/observation/proprio/hand": np.zeros(0)}  # fmt: skip
EMPTY = dict(lengths=(7, 0, 7, 7))
NO21, NO30 = f"{DATA21}: .*not a whole", f"{DATA30}: .*not a whole"
TEXT = "language_instruction"

# fault -> (maker, words of the error, episodes left; None: it can be no skip; SAMPLES: those of
# episode 1 give way when they are drawn)
SAMPLES = "samples"
FAULTS = {
    "rlds truncated": (lambda p: write_rlds(p, change=cut), f"{RECORD}: .*record 3 at", "012"),
    "rlds bit flip": (
        lambda p: write_rlds(p, change=lambda file: flip(file, 9000)), f"{RECORD}: corrupt.* 1 at",
        "023",
    ),
    "rlds dtype": (
        lambda p: write_rlds(p, {ACTION: np.zeros((7, 4), np.int64)}),
        f"{RECORD}: record 1 .*{ACTION}: got 28 values of int64", "023",
    ),
    "rlds NaN": (
        lambda p: write_rlds(p, {ACTION: NAN}), f"{RECORD}: record 1 .*e1, step 3: action dim 2",
        "023",
    ),
    "rlds no steps": (
        lambda p: write_rlds(p, NO_STEPS), f"{RECORD}: record 1 .*without steps .*{ACTION}", "023"
    ),
    "rlds no camera": (
        lambda p: write_rlds(p, {PRIMARY: None}), f"{RECORD}: record 1 .*lacks .*{PRIMARY}", "023"
    ),
    "rlds same id": (
        lambda p: write_rlds(p, {"episode_metadata/episode_id": [b"e0"]}),
        f"{RECORD}: record 1 .*the id 'e0', the other is .*record 0", "023",
    ),
    "rlds no text": (
        lambda p: write_rlds(p, {f"steps/{TEXT}": [b"a \xff"] * 7}),
        f"{RECORD}: record 1 .*{TEXT}: got bytes that are no UTF-8", "023",
    ),
    "rlds picture": (
        lambda p: write_rlds(p, {PRIMARY: [b"\xff\xd8 none"] * 7}),
        rf"{RECORD}: {PRIMARY}: episode e1, step \d, view primary", SAMPLES,
    ),
    "v2.1 truncated": (
        lambda p: write_v21(p, then=lambda p: cut(p / DATA21)), rf"{NO21} .*\(episode 1\)", "023"
    ),
    "v2.1 bit flip": (
        lambda p: write_v21(p, then=flip_action(DATA21)),
        rf"{DATA21}: action: not a whole .*\(episode 1\)", "023",
    ),
    "v2.1 dtype": (
        lambda p: write_v21(p, one("action", integers)),
        rf"{DATA21}: action: holds int64, expected float32.*\(episode 1\)", "023",
    ),
    "v2.1 NaN": (
        lambda p: write_v21(p, one("action", at(3, [0.0, 0.0, float("nan"), 0.0]))),
        f"{DATA21}: episode episode_000001, step 3: action dim 2 is nan", "023",
    ),
    "v2.1 no steps": (
        lambda p: write_v21(p, **EMPTY), f"{DATA21}: episode 1: an episode without steps", "023"
    ),
    "v2.1 no camera": (
        lambda p: write_v21(p, then=without_top),
        rf"{DATA21}: column: unknown '{TOP}'.*\(episode 1\)", "023",
    ),
    "v2.1 no video": (
        lambda p: write_v21(p, kind="video", then=lambda p: next(p.rglob("*1.mp4")).unlink()),
        rf"{TOP}/episode_000001.mp4: no such file \(episode 1, {TOP}\)", "023",
    ),
    "v2.1 same id": (
        lambda p: write_v21(p, then=twice), r"episodes.jsonl: .*episode_index .* twice \[1\]", None
    ),
    "v2.1 no text": (
        lambda p: write_v21(p, then=no_text), r"tasks.jsonl: line 2 is no JSON .*'task'.*utf-8",
        None,
    ),
    "v2.1 picture": (
        lambda p: write_v21(p, one(TOP, nothing)), f"episode 1, {TOP}: .*{DATA21}: .*no bytes",
        SAMPLES,
    ),
    "v2.1 video": (
        lambda p: write_v21(p, kind="video", then=lambda p: cut(next(p.rglob("*1.mp4")), 900)),
        f"episode 1, {TOP}: .*{TOP}/episode_000001.mp4: ", SAMPLES,
    ),
    "v3.0 truncated": (
        lambda p: write_v30(p, lambda p: cut(p / DATA30)), rf"{NO30} .*\(episode 1\)", "0"
    ),
    "v3.0 bit flip": (
        lambda p: write_v30(p, flip_action(DATA30)),
        rf"{DATA30}: action: not a whole .*\(episode 1\)", "0",
    ),
    "v3.0 dtype": (
        lambda p: write_v30(p, change=one("action", integers), files=(0, 1, 2, 2)),
        rf"{DATA30}: action: holds int64, expected float32.*\(episode 1\)", "023",
    ),
    "v3.0 NaN": (
        lambda p: write_v30(p, change=one("action", at(3, [0.0, 0.0, float("nan"), 0.0]))),
        f"{DATA30}: episode episode_000001, step 3: action dim 2 is nan", "023",
    ),
    "v3.0 no value": (
        lambda p: write_v30(p, change=one("action", at(3, None)), files=(1, 1, 1, 1)),
        rf"{DATA30}: action: row 10 is empty.*\(episode 1\)", "023",
    ),
    "v3.0 no steps": (
        lambda p: write_v30(p, **EMPTY), f"{DATA30}: episode 1: an episode without steps", "023"
    ),
    "v3.0 no camera": (
        lambda p: write_v30(p, change=one(TOP, nothing)),
        rf"episode 1, {TOP}: .*{DATA30}: {TOP} of row \d has no bytes", SAMPLES,
    ),
    "v3.0 same id": (
        lambda p: write_v30(p, twice30), r"meta/episodes: .*episode_index .* twice \[1\]", None
    ),
    "v3.0 no text": (
        lambda p: write_v30(p, tasks=("a dog", b"a \xff")), "tasks.parquet: .*: bytes that are no "
        "UTF-8", None,
    ),
    "hdf5 truncated": (
        lambda p: write_hdf5(p, then=lambda p: cut(p / "b.hdf5", 2000)),
        "b.hdf5: not a whole HDF5 file", "a/demo_0 a/demo_1 a/demo_2",
    ),
    "hdf5 bit flip": (
        lambda p: write_hdf5(
            p, dataset("actions", hdf5_files.actions(1), fletcher32=True, chunks=(7, 7)), flip_hdf5
        ),
        "a.hdf5: data/demo_1: actions: cannot be read", "a/demo_0 a/demo_2 b/demo_0",
    ),
    "hdf5 dtype": (
        lambda p: write_hdf5(p, dataset("actions", np.zeros((7, 7), np.int64))),
        r"a.hdf5: data/demo_1: actions is int64 \[7\]", "a/demo_0 a/demo_2 b/demo_0",
    ),
    "hdf5 NaN": (
        lambda p: write_hdf5(p, dataset("actions", no_actions())),
        "a.hdf5: data/demo_1: episode a/demo_1, step 3: action dim 2 is nan",
        "a/demo_0 a/demo_2 b/demo_0",
    ),
    "hdf5 no steps": (
        lambda p: write_hdf5(p, dataset("actions", np.zeros((0, 7)))),
        "a.hdf5: data/demo_1: no actions", "a/demo_0 a/demo_2 b/demo_0",
    ),
    "hdf5 no camera": (
        lambda p: write_hdf5(p, dataset("obs/agentview_rgb", None)),
        "a.hdf5: data/demo_1: data set: unknown 'obs/agentview_rgb'", "a/demo_0 a/demo_2 b/demo_0",
    ),
    "hdf5 same id": (
        lambda p: write_hdf5(p, then=lambda p: (p / "b.hdf5").rename(p / "a.h5")),
        "a.hdf5: data/demo_0: two episodes have the id 'a/demo_0', the other is .*a.h5: data/",
        "a/demo_0 a/demo_1 a/demo_2",
    ),
    "hdf5 no text": (
        lambda p: write_hdf5(
            p, dataset(TEXT, np.asarray([b"a \xff"] * 7, h5py.string_dtype("utf-8")))
        ),
        f"a.hdf5: data/demo_1: {TEXT}: cannot be read .*utf-8", "a/demo_0 a/demo_2 b/demo_0",
    ),
}  # fmt: skip


def members(spec, **arguments):
    return {"a": dict(source=dict(**spec, holdout=0, **arguments))}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_or_skipped_and_counted(name, tmp_path, context):
    make, words, left = FAULTS[name]
    spec = make(tmp_path / "d")
    with pytest.raises(plugin.UserError, match=f"(?s){words}"):
        strict = mixture.Mixture.make(members(spec), context)
        for n in range(28):
            strict.sample(n)
    if left is None:
        with pytest.raises(plugin.UserError, match=f"(?s){words}"):
            mixture.Mixture.make(members(spec, bad_samples="skip"), context)
        return
    mix = mixture.Mixture.make(members(spec, bad_samples="skip"), context)
    source = mix.sources["a"]
    whole = {"rlds": "e{}", "v2.1": "episode_00000{}", "v3.0": "episode_00000{}"}
    if left == SAMPLES:
        assert len(source) == 28 and not source.episodes.skipped
        # Samples 7 to 13 are those of episode 1; what they give way to is the next that is whole.
        for n, place in enumerate(mix.locate(n)[1] for n in range(28)):
            row, given_way = mix.sample(n), max(0, 14 - place) if place >= 7 else 0
            assert row["skipped"] == given_way
            later = next(m for m in range(28) if mix.locate(m)[1] == place + given_way)
            np.testing.assert_equal(row["observation"], mix.sample(later)["observation"])
        return
    kind = whole.get(name.split()[0])
    ids = [kind.format(number) for number in left] if kind else left.split()
    assert sorted(source.episodes.ids) == ids and len(source) == 7 * len(ids)
    count = source.summary()["skipped"]
    assert count == len(source.episodes.skipped) >= 1
    assert all(mix.sample(n)["skipped"] == 0 for n in range(0, len(source), 5))


@pytest.mark.parametrize("kind", ["rlds", "v2.1", "v3.0", "hdf5"])
@pytest.mark.parametrize("text", ["pon la taza aquí", "把杯子放在桌上", "the 🐈", "é\u0301"])
def test_an_instruction_in_any_script_is_read_as_it_is(kind, text, tmp_path):
    path = tmp_path / "d"

    def said(path):
        rows = [dict(task_index=i, task=text) for i in range(2)]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (pathlib.Path(path) / "meta/tasks.jsonl").write_text("\n".join(lines), "utf-8")

    told = {f"steps/{TEXT}": [text.encode()] * 7}
    spec = {
        "rlds": lambda: write_rlds(path, told, episodes=2),
        "v2.1": lambda: write_v21(path, then=said, lengths=(7, 7)),
        "v3.0": lambda: write_v30(path, tasks=(text, text), lengths=(7, 7), files=(0, 0)),
        "hdf5": lambda: write_hdf5(path, said=text),
    }[kind]()
    table, _ = recordings.recorded(spec["path"], standardizer=spec.get("standardizer", "native"))
    assert text in list(table.language)
