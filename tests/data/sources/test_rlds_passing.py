"""Faults that may pass: what they left out of a table is there when it is read again."""

import numpy as np
import pytest

from tests.data.conftest import episode, write_folder
from vla_jax import plugin
from vla_jax.data import convert, recordings
from vla_jax.data.sources import _rlds_raw, _rlds_table
from vla_jax.data.writers import _shards


@pytest.mark.parametrize(
    "cause, count",
    [
        (OSError(5, "Input/output error"), 4),
        (TimeoutError("slow"), 4),
        (OSError("no gzip"), 3),
        (PermissionError(13, "Permission denied"), 3),
    ],
)
def test_a_table_without_what_a_passing_fault_hid_is_not_kept(
    tmp_path, monkeypatch, capsys, cause, count
):
    path = write_folder(tmp_path / "arm", [episode(i) for i in range(4)], shards=1)
    read = _rlds_table._Shard.episode

    def failing(shard, number):
        if number == 2:
            raise plugin.UserError("record 2: cannot be read") from cause
        return read(shard, number)

    monkeypatch.setattr(_rlds_table._Shard, "episode", failing)
    table, _ = recordings.recorded(path, bad_samples="skip")
    assert list(table.skipped) == ["record 2: cannot be read"] and len(table) == 3
    assert np.asarray(table.action).shape[0] == 21
    told = capsys.readouterr().err
    assert (
        ("is not kept" in told) == ("the first: record 2: cannot be read" in told) == (count == 4)
    )
    monkeypatch.undo()
    table, _ = recordings.recorded(path, bad_samples="skip")
    assert len(table) == count


@pytest.mark.parametrize("standardizer", [None, "native"])
def test_converted_data_lack_nothing_for_a_passing_fault(tmp_path, monkeypatch, standardizer):
    path = write_folder(tmp_path / "arm", [episode(i) for i in range(4)], shards=1)
    owner, name = (_rlds_table._Shard, "episode") if standardizer else (_rlds_raw.Raw, "_record")
    read = getattr(owner, name)

    def failing(*given):
        if given[-1] == 2:
            raise plugin.UserError("record 2: cannot be read") from OSError(5, "I/O error")
        return read(*given)

    how = dict(to="rlds", standardizer=standardizer, bad_episodes="skip", workers=0, progress=False)
    monkeypatch.setattr(owner, name, failing)
    with pytest.raises(plugin.UserError, match="record 2: cannot be read"):
        convert.convert(path, tmp_path / "new", **how)
    assert not (tmp_path / "new").exists()
    monkeypatch.undo()
    _shards.source.cache_clear()  # as another start would
    done = convert.convert(path, tmp_path / "new", **how)
    assert done["episodes"] == 4 and not done["skipped"]
