"""Parameters of another run: read straight into their place, and only where a run begins."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.train import toy
from vla_jax import trees
from vla_jax.parallel import mesh as meshes
from vla_jax.train import checkpoint, start, stored

ONE = jax.devices()[:1]
PROJECT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A run's folder whose moving average is not its parameters."""
    folder = tmp_path_factory.mktemp("before")
    config = toy.config()
    plan = start.plan(config, toy.Model(), toy.batches(config), meshes.make(devices=ONE))
    state = start.fresh(plan)
    state = dataclasses.replace(state, ema=jax.tree.map(lambda x: x + 1, state.ema))
    saver = checkpoint.Checkpoints(str(folder), config, checkpoint.Assets())
    saver.save(3, state, {"robot": 1, "vl": 1})
    saver.close()
    return str(folder), jax.device_get(state.averaged)


@pytest.fixture(autouse=True)
def no_host_reads_whole_arrays(monkeypatch):
    monkeypatch.setattr(stored, "_restore_numpy", lambda path: pytest.fail(f"reads {path}"))


def test_each_array_is_read_as_the_state_has_it(before):
    """On a mesh each device has its part; frozen parameters have their own type, stems stay new."""
    folder, expected = before
    config = toy.config(
        mesh=dict(data=2, fsdp=4), freeze=(("params/vl/.*", True),), frozen_dtype="bfloat16"
    )
    axes = dict(data=2, fsdp=4)
    plan = start.plan(config, toy.Model(), toy.batches(config), meshes.make(axes))
    asked = []

    def pretrained(shapes):
        wanted = {p: (p, x) for p, x in trees.items(shapes) if "/stem/" not in p}
        found = checkpoint.look(folder).place(wanted)
        for path, array in found.items():
            leaf = wanted[path][1]
            assert (array.sharding, array.dtype) == (leaf.sharding, leaf.dtype)
            asked.append(array)
        return trees.map_with_path(lambda path, leaf: found.get(path, leaf), shapes)

    fresh, state = start.fresh(plan), start.fresh(plan, pretrained)
    assert all(array.is_deleted() for array in asked)  # their buffers are the state's now
    assert jax.tree.map(lambda x: x.sharding, state) == plan.shardings
    kernel = state.trained["params"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size
    for path, array in trees.items(state.variables):
        if "/stem/" in path:
            wanted = trees.flatten(fresh.variables)[path]
        else:
            wanted = trees.flatten(expected)[path].astype(array.dtype)
        np.testing.assert_array_equal(array, wanted, path)
    assert state.frozen["params"]["vl"]["kernel"].dtype == "bfloat16"
    pairs = zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.trained))
    assert all(np.array_equal(a, b) for a, b in pairs)  # the average begins with them
    assert not any(np.any(x) for p, x in trees.items(state.opt_state) if "/mu/" in p)


def test_two_names_may_take_one_array(before):
    folder, expected = before
    where = jax.sharding.SingleDeviceSharding(ONE[0])
    leaf = jax.ShapeDtypeStruct((toy.READING, 16), "float32", sharding=where)
    half = jax.ShapeDtypeStruct((toy.READING, 16), "bfloat16", sharding=where)
    path = "params/stem/kernel"
    found = checkpoint.look(folder).place({"a": (path, leaf), "b": (path, half)})
    np.testing.assert_array_equal(found["a"], trees.flatten(expected)[path])
    assert found["b"].dtype == "bfloat16" and list(found) == ["a", "b"]


READ = """
import sys
import jax, numpy as np
from tests.train import toy
from vla_jax import trees
from vla_jax.parallel import mesh as meshes, processes
from vla_jax.train import accounting, checkpoint, start

with processes.together():
    config = toy.config()
    plan = start.plan(config, toy.Model(), toy.batches(config), meshes.make(dict(data=1, fsdp=4)))

    def pretrained(shapes):
        found = checkpoint.look(sys.argv[1]).place({p: (p, x) for p, x in trees.items(shapes)})
        return trees.map_with_path(lambda path, leaf: found[path], shapes)

    state, whole = start.fresh(plan, pretrained), checkpoint.load(sys.argv[1]).variables
    for (path, array), leaf in zip(trees.items(state.variables), jax.tree.leaves(whole)):
        for part in array.addressable_shards:
            assert np.array_equal(part.data, leaf[part.index]), path
    found = accounting.restored(state, 1.0)
    assert found["restore/bytes"] / 2 <= found["restore/host_bytes"] < 0.7 * found["restore/bytes"]
    print("agrees on", jax.process_count(), flush=True)
"""


@pytest.mark.slow
def test_each_of_two_processes_reads_its_half(before):
    command = [sys.executable, "launch/local.py", "--processes", "2", "--devices", "2", "--"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [*command, sys.executable, "-c", READ, before[0]],
        **dict(cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300),
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0 and said.count("agrees on 2") == 2, said[-3000:]
    assert said.count("restored train_step 0") == 1  # process 0 alone says it
