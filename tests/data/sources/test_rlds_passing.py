"""Faults that may pass: what they left out of a table is there when it is read again."""

import numpy as np
import pytest

from tests.data.conftest import episode, write_folder
from vla_jax import plugin
from vla_jax.data import recordings
from vla_jax.data.sources import _rlds_table


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
