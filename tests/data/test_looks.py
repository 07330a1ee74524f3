"""Pictures that a data set stored upside down, or blue first: upright for all who read by a row."""

import dataclasses
import pickle

import fsspec
import numpy as np
import pytest
import simplejpeg

from tests.data.conftest import CAMERA, episode, write_folder
from tests.data.sources import hdf5_files, lerobot_sets
from vla_jax import plugin
from vla_jax.data import (
    convert,
    episodes,
    images,
    inspect,
    looks,
    recordings,
    robot,
    standardized,
    visualize,
)

SIZE, EPISODES, T = 16, 4, 7
RLDS_ROW = dict(
    embodiment="arm",
    action_space="xyz_gripper",
    views={"primary": "observation/images/primary", "wrist": "observation/images/wrist"},
    action="action",
    proprio={"hand": "observation/proprio/hand"},
    language="language_instruction",
)
HDF5_ROW = hdf5_files.STANDARDIZER["row"]
HDF5_ROW = HDF5_ROW | {"views": HDF5_ROW["views"] | {"wrist": "obs/eye_in_hand_rgb"}}


def uneven(number: int, step: int, *_) -> np.ndarray:
    """A picture that is another one when it is turned, mirrored, or its colours change places."""
    image = np.full((SIZE, SIZE, 3), 20 + 10 * step, np.uint8)
    image[:4], image[4:8, :8] = (220, 40, 40), (40, 40, 20 + 30 * number)
    return image


def rlds(path, monkeypatch):
    made = []
    for number in range(EPISODES):
        pictures = [lerobot_sets.png(uneven(number, t)) for t in range(T)]
        views = {f"steps/observation/images/{view}": pictures for view in RLDS_ROW["views"]}
        made.append(episode(number, **views))
    return str(write_folder(path / "arm_data", made, shards=1)), RLDS_ROW


def lerobot(kind):
    def write(path, monkeypatch):
        monkeypatch.setattr(lerobot_sets, "picture", uneven)
        return lerobot_sets.write_v21(path / "arm", kind=kind), lerobot_sets.ROW

    return write


def hdf5(path, monkeypatch):
    monkeypatch.setattr(hdf5_files, "picture", uneven)
    return hdf5_files.write_libero(path / "arm.hdf5", EPISODES, said="open it"), HDF5_ROW


SOURCES = {"rlds": rlds, "lerobot": lerobot("image"), "video": lerobot("video"), "hdf5": hdf5}


@pytest.fixture(params=SOURCES)
def written(request, tmp_path, monkeypatch):
    """(path, row without a look) of each format."""
    return SOURCES[request.param](tmp_path, monkeypatch)


def rows(row, **look):
    return dict(type="rows", row=row | look)


def arrays(read, view, number, places):
    found = read(view, number, places)
    return [images.decode(data) if isinstance(data, bytes) else data for data in found]


def test_every_source_shows_them_upright(written):
    path, row = written
    stored = recordings.recorded(path, standardizer=rows(row))
    turned = recordings.recorded(path, standardizer=rows(row, turned=True))
    swapped = recordings.recorded(path, standardizer=rows(row, bgr=True, turned=["primary"]))
    place = [2 * T + 3, 2 * T]
    was = arrays(stored[1], "primary", 2, place)
    assert np.abs(was[0].astype(int) - np.rot90(was[0], 2)).max() > 50
    for table, read, channels in ((*turned, [0, 1, 2]), (*swapped, [2, 1, 0])):
        read = pickle.loads(pickle.dumps(read))
        for a, b in zip(was, arrays(read, "primary", 2, place), strict=True):
            np.testing.assert_array_equal(b, np.rot90(a, 2)[..., channels])
        assert table.fingerprint() != stored[0].fingerprint()
        np.testing.assert_array_equal(table.action, stored[0].action)
    if "wrist" in row["views"]:  # of which `swapped` turns none
        (a,), (b,) = (arrays(read, "wrist", 1, [T]) for read in (stored[1], swapped[1]))
        np.testing.assert_array_equal(b, a[..., ::-1])
    again = recordings.recorded(path, standardizer=rows(row, turned=True))[0]
    assert again.looks == turned[0].looks == {view: ("turned",) for view in row["views"]}


def test_samples_goals_and_caches_are_upright(written, context, tmp_path):
    path, row = written

    def sample(cache=False, **look):
        given = dict(goals=dict(views=("primary",), strategy="last"), holdout=0.0)
        given |= dict(cache=dict(path=str(tmp_path / "cache"), format="raw")) if cache else {}
        source = plugin.build(
            "data.sources",
            dict(type=recordings.source_type(path), path=path, standardizer=rows(row, **look))
            | given,
            context,
        )
        made = source.sample(4, np.random.default_rng(0))
        shown = made["observation"]["images"]["primary"], made["task"]["values"]["goal_primary"]
        return source.fingerprint, *shown

    for cache in (False, True):
        (one, seen, goal), (two, turned, turned_goal) = sample(cache), sample(cache, turned=True)
        assert one != two
        np.testing.assert_array_equal(turned, np.rot90(seen, 2, (1, 2)))
        np.testing.assert_array_equal(turned_goal, np.rot90(goal, 2))
        assert np.abs(goal.astype(int) - turned_goal).max() > 50
    assert len(list((tmp_path / "cache").iterdir())) == 2  # side by side, neither is stale


def test_runs_of_bytes_are_upright(tmp_path, context, monkeypatch):
    path, row = rlds(tmp_path, monkeypatch)
    system = fsspec.filesystem("memory")
    system.put(path, "/looks_far", recursive=True)
    shown = {}
    try:
        for access in ("random", "contiguous"):
            spec = dict(type="rlds", path="memory://looks_far", index_dir=str(tmp_path / "index"))
            spec |= dict(standardizer=rows(row, turned=True), access=access, holdout=0.0)
            source = plugin.build("data.sources", spec, context)
            source = pickle.loads(pickle.dumps(source))
            made = source.sample(9, np.random.default_rng(0))
            shown[access] = made["observation"]["images"]["primary"]
    finally:
        system.rm("/looks_far", recursive=True)
    np.testing.assert_array_equal(shown["random"], shown["contiguous"])
    np.testing.assert_array_equal(shown["random"][-1], np.rot90(uneven(*divmod(9, T)), 2))


@pytest.fixture
def table_of_rows(written, tmp_path):
    """(path, row, "FILE.py:ROW" of the row with turned=True)."""
    path, row = written
    file = tmp_path / "my_rows.py"
    file.write_text(f"ROWS = {dict(mine=row | dict(turned=True))!r}\n")
    return path, row, f"{file}:mine"


def test_conversions_write_upright_pictures_and_a_plain_row_reads_them(table_of_rows, tmp_path):
    path, row, standardizer = table_of_rows
    stored = recordings.recorded(path, standardizer=rows(row))[1]
    how = dict(workers=0, progress=False, pictures="png")
    for to in ("rlds", "lerobot"):
        out = tmp_path / to
        convert.convert(path, out, to=to, standardizer=standardizer, control_hz=10, **how)
        table, read = recordings.recorded(out)
        assert not table.looks
        for number in (0, 3):
            (a,), (b,) = (arrays(r, "primary", number, [number * T + 2]) for r in (stored, read))
            np.testing.assert_array_equal(b, np.rot90(a, 2))
    raw, as_is = recordings.raw(path), tmp_path / "as_is"
    convert.convert(path, as_is, to="rlds", **how)
    (name, *_) = recordings.pictures(raw)
    same = recordings.raw(as_is)
    stepped = name if name.startswith("steps/") else f"steps/{name}"
    np.testing.assert_array_equal(same.episode(1, [stepped])[stepped], raw.episode(1, [name])[name])


def test_tools_that_read_by_the_row_show_them_upright(table_of_rows, tmp_path, monkeypatch):
    path, row, standardizer = table_of_rows
    raw, seen = recordings.raw(path), standardized.Standardized(path, None, standardizer)
    (name,) = (n for n in recordings.pictures(raw) if n.endswith(row["views"]["primary"]))
    ours = "steps/observation/images/primary"
    a, b = raw.episode(1, [name], [2])[name], seen.episode(1, [ours], [2])[ours]
    np.testing.assert_array_equal(b, np.rot90(a, 2, (1, 2)))
    films = []
    film = visualize.film
    monkeypatch.setattr(
        visualize, "film", lambda shown, size: films.append(shown) or film(shown, size)
    )
    tiles = []
    tile = inspect._tile
    monkeypatch.setattr(inspect, "_tile", lambda shown: tiles.append(shown) or tile(shown))
    for given, there in ((None, name), (standardizer, ours)):
        page = dict(episodes=1, frames=1, standardizer=given)
        visualize.build(path, tmp_path / "page.html", **page)
        inspect.sheet(path, episodes=1, times=1, standardizer=given)
        assert there in inspect.summarize(path, standardizer=given)["fields"]
    views = len(row["views"])
    for shown in (films, tiles):
        assert len(shown) == 2 * views
        upright = shown[views:]
        for was, now in zip(shown, upright):
            was, now = np.squeeze(was), np.squeeze(now)
            np.testing.assert_array_equal(now, np.rot90(was, 2))


FRAMES = {"primary": (np.zeros(2, np.int64), np.ones(2, np.int64))}


def made(number=0, **look):
    return episodes.Episode(
        id=f"e{number}",
        steps=np.arange(2),
        action=np.zeros((2, 4), np.float32),
        proprio={},
        language=("", ""),
        embodiment="arm",
        action_space="xyz_gripper",
        cameras={"primary": CAMERA},
        looks={view: tuple(words) for view, words in look.items()},
    )


def test_a_camera_s_matrix_turns_with_its_picture():
    """A point of the world lies in the same pixel, elsewhere in the upright picture."""
    point = np.array([0.2, 0.1, 0.0, 1.0])

    def place(camera):
        x, y, w = camera @ point
        return np.array([x / w, y / w])

    a, b = (
        episodes.collect("x", "x", [(e, FRAMES, 0, 0, 0)], ("primary",)).cameras["primary"][0]
        for e in (made(), made(primary=["turned"]))
    )
    np.testing.assert_allclose(place(b), 1 - place(a), atol=1e-6)


def test_a_standardizer_of_one_s_own_says_one_thing_of_a_data_set():
    for second, message in (
        (made(1), r"e1: pictures stored as \{\}, expected \{'primary': \('turned',\)\}"),
        (made(1, primary=["flipped"]), "e1: looks of primary: unknown.*flipped"),
    ):
        pair = [(e, FRAMES, 0, 0, 0) for e in (made(0, primary=["turned"]), second)]
        with pytest.raises(plugin.UserError, match=message):
            episodes.collect("x", "x", pair, ("primary",))


def test_a_broken_picture_is_named(tmp_path):
    bad = episode(1)
    bad["steps/observation/images/primary"][3] = b"\xff\xd8 no picture"
    row = RLDS_ROW | {"views": {"primary": "observation/images/primary"}}
    path = write_folder(tmp_path / "arm", [episode(0), bad], shards=1)
    _, read = recordings.recorded(path, standardizer=rows(row, turned=True))
    with pytest.raises(plugin.UserError, match="step 3, view primary: 13 bytes that are no"):
        read("primary", 1, [T + 3])


@pytest.mark.parametrize(
    "look, message",
    [
        (dict(turned="wrist"), "turned: view: unknown 'wrist'"),
        (dict(bgr=3), "bgr: got 3, expected bool or str or Sequence"),
        (dict(upside_down=True), "unknown 'upside_down'"),
    ],
)
def test_rows_that_are_not_sound(tmp_path, look, message):
    row = RLDS_ROW | {"views": {"primary": "observation/images/primary"}}
    path = write_folder(tmp_path / "arm", [episode(0)], shards=1)
    with pytest.raises(plugin.UserError, match=message):
        recordings.recorded(path, standardizer=rows(row, **look))


def test_jpegs_are_decoded_as_the_stream_resizes(tmp_path, context):
    """What is turned is decoded by TensorFlow's transform, too, where that is asked for."""
    noise = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    code = simplejpeg.encode_jpeg(noise, quality=70, colorsubsampling="444")
    views = {"steps/observation/images/primary": [code] * T}
    path = write_folder(tmp_path / "arm", [episode(0, **views)], shards=1)
    row = RLDS_ROW | {"views": {"primary": "observation/images/primary"}}
    for method in images.METHODS:
        table, read = recordings.recorded(path, standardizer=rows(row, turned=True))
        assert isinstance(read, looks.Upright)
        source = robot.RobotRows(
            dataclasses.replace(context, resize=method), table, read, robot.Reading(holdout=0.0)
        )
        shown = source.sample(3, np.random.default_rng(0))["observation"]["images"]["primary"][-1]
        np.testing.assert_array_equal(shown, np.rot90(images.decode(code, method), 2))
    assert np.any(images.decode(code, "area") != images.decode(code, "tensorflow"))
