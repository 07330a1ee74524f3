"""Steps per second of what a row keeps of an episode, in metadata and in conversions."""

import json

import numpy as np
import pytest

from tests.data.conftest import episode, leaf, write_folder
from tests.data.sources import lerobot_sets
from tests.data.test_convert import run
from vla_jax import plugin
from vla_jax.data import recordings

ROW = dict(
    embodiment="arm",
    action_space="xyz_gripper",
    views={"primary": "observation/images/primary"},
    action="action",
    language="language_instruction",
)


def test_a_row_that_keeps_every_third_step_has_a_third_of_the_rate(tmp_path):
    path = lerobot_sets.write_v21(tmp_path / "old", kind="image")  # at 10 Hz, as info.json says
    table = {"sparse": lerobot_sets.ROW | {"stride": 3}, "full": lerobot_sets.ROW}
    (tmp_path / "rows.py").write_text(f"ROWS = {table!r}\n")
    for row, hz in (("full", 10), ("sparse", pytest.approx(10 / 3))):
        given = dict(standardizer=f"{tmp_path}/rows.py:{row}", pictures="png")
        run(path, tmp_path / row, to="lerobot", **given)
        new = recordings.raw(tmp_path / row)
        assert new.fps == hz
        times = new.episode(1)["timestamp"]
        np.testing.assert_allclose(times, np.arange(len(times)) / new.fps, rtol=1e-6)
        # The same through our RLDS, which says the rate in the metadata.
        run(path, tmp_path / f"{row}_rlds", to="rlds", **given)
        ours = recordings.raw(tmp_path / f"{row}_rlds").episode(0, ["episode_metadata/control_hz"])
        assert float(ours["episode_metadata/control_hz"]) == hz
        run(tmp_path / f"{row}_rlds", tmp_path / f"{row}_2", to="lerobot", pictures="png")
        assert recordings.raw(tmp_path / f"{row}_2").fps == new.fps
    with pytest.raises(plugin.UserError, match="--hz: got 5, but the source says 10 steps"):
        run(path, tmp_path / "wrong", to="lerobot", control_hz=5.0, **given)


def test_the_rate_asked_for_is_the_recorded_one(tmp_path):
    path = write_folder(tmp_path / "old", [episode(i) for i in range(2)])  # says no rate
    (tmp_path / "rows.py").write_text(f"ROWS = {dict(sparse=ROW | dict(stride=3))!r}\n")
    given = dict(standardizer=f"{tmp_path}/rows.py:sparse", pictures="png", control_hz=12.0)
    run(path, tmp_path / "sparse", to="lerobot", **given)
    assert recordings.raw(tmp_path / "sparse").fps == 4


def test_rlds_metadata_s_rate_is_divided_by_the_stride(tmp_path, rlds):
    rate = {"episode_metadata/control_hz": np.array([20.0], np.float32)}
    path = rlds.write(tmp_path / "old", [episode(i, **rate) for i in range(2)])
    described = json.loads((path / "features.json").read_text())
    metadata = described["featuresDict"]["features"]["episode_metadata"]
    metadata["featuresDict"]["features"]["control_hz"] = leaf("tensor", ())
    (path / "features.json").write_text(json.dumps(described))
    for stride, hz in ((1, 20.0), (4, 5.0)):
        standardizer = dict(type="rows", row=ROW, stride=stride)
        table, _ = recordings.recorded(path, standardizer=standardizer)
        assert list(table.metadata["control_hz"]) == [hz, hz]
