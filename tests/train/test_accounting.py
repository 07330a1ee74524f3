"""Rates and the use of a run's time, as they stand in its metrics."""

import dataclasses
import json
import time

import jax
import numpy as np
import pytest

from tests.train import toy
from vla_jax import config as config_lib
from vla_jax.parallel import chips
from vla_jax.parallel import mesh as meshes
from vla_jax.train import accounting, checkpoint, flops, smoke, start
from vla_jax.train.writers import jsonl

ONE = jax.devices()[:1]


def test_rates_follow_from_the_time_of_a_train_step(tmp_path):
    work = accounting.Work(samples={"robot": 64, "vl": 32}, tokens=960, flops=6e12, peak=4e13)
    account = accounting.Account(str(tmp_path), work)
    account.spend("save", 1.5)
    account.spend("save", 1.0)
    found = account.line(0.5)
    assert found["samples_per_second/robot"] == 128 and found["tokens_per_second"] == 1920
    assert found["mfu"] == pytest.approx(0.3) and found["seconds/save"] == 2.5


def test_every_second_since_the_first_start_is_counted_once(tmp_path, monkeypatch):
    """A crash: what it took away is `restarts`; how long a train_step takes now is no matter."""
    now = [5000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    passes(10)  # the state is made
    account = accounting.Account(str(tmp_path), None, {"init": 10.0})
    passes(30)
    account.spend("compile", 30)
    passes(400)
    saved = account.seconds()
    assert saved == {"train_steps": 400, "restarts": 0, "init": 10, "compile": 30}
    passes(50)  # of train_steps that the crash takes away
    assert account.line(1.0)["goodput"] == pytest.approx(450 / 490)
    passes(100)  # until somebody starts it again
    passes(20)
    again = accounting.Account(str(tmp_path), None, {"restore": 20.0}, saved)
    passes(300)
    again.spend("save", 0)
    assert again.seconds() == {
        **{"train_steps": 700, "restarts": 150, "init": 10, "compile": 30, "restore": 20},
        "save": 0,
    }
    for seconds_per_step in (0.1, 4.0):  # on whatever mesh
        line = again.line(seconds_per_step)
        assert line["goodput"] == pytest.approx(700 / 910) and line["seconds/restarts"] == 150
    # A second crash, before anything was saved, and one without any resume point.
    third = accounting.Account(str(tmp_path), None, {"restore": 0.0}, saved)
    assert third.seconds()["restarts"] == 150 + 20 + 300
    fourth = accounting.Account(str(tmp_path), None, {"init": 0.0})
    assert fourth.seconds() == {"train_steps": 0, "restarts": 910, "init": 0}


def test_the_sums_go_on_with_the_run(tmp_path, capsys):
    config = toy.config(steps=2, checkpoint=dict(every=1))
    toy.run(config, tmp_path, devices=ONE)
    assert "restored" not in capsys.readouterr().out
    sums = checkpoint.look(str(tmp_path)).meta.seconds
    assert sums["train_steps"] > 0 and sums["compile"] > 0 and "restore" not in sums
    state = toy.run(dataclasses.replace(config, steps=4), tmp_path, devices=ONE)
    *_, third, last = lines = list(jsonl.read(str(tmp_path)))
    # A train_step in flight when a save begins is time of train_steps, and counted once.
    assert all(line["seconds_per_step"] > 1e-6 for line in lines)
    assert last["seconds/train_steps"] >= sums["train_steps"]
    assert last["seconds/compile"] > sums["compile"] and last["seconds/restarts"] > 0
    whole = sum(v for k, v in last.items() if k.startswith("seconds/"))
    began = json.loads((tmp_path / accounting.STARTED).read_text())["unix_time"]
    assert last["goodput"] == pytest.approx(last["seconds/train_steps"] / whole)
    assert whole <= time.time() - began + 0.01
    # What the restore took and read stands in the first line after it, and is said.
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))
    assert third["restore/bytes"] == third["restore/host_bytes"] == size
    assert 0 < third["restore/seconds"] <= third["seconds/restore"]
    assert "restore/bytes" not in last
    assert "restored train_step 2: 0.0 MB in" in capsys.readouterr().out


def test_a_host_counts_each_part_that_it_read_once():
    mesh = meshes.make(dict(data=4, fsdp=2))
    plan = start.plan(toy.config(), toy.Model(), toy.batches(toy.config()), mesh)
    found = accounting.restored(start.fresh(plan), 2.0)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(plan.abstract))
    assert found == {"restore/seconds": 2.0, "restore/bytes": size, "restore/host_bytes": size}


def test_what_a_config_does_in_a_train_step(monkeypatch):
    config = config_lib.load("configs/octo_small.py:batch_size=16")
    tokenizer, _ = smoke.text_tokenizer(config)
    network, size = smoke.parts(config, tokenizer)[0], tokenizer.vocabulary_size
    on_cpu = accounting.work(config, network, size)
    assert on_cpu == accounting.Work(samples={"robot": 16}, tokens=16 * 690)
    monkeypatch.setattr(chips, "of_kind", lambda kind: chips.CHIPS["h200"])
    there = accounting.work(config, network, size)
    assert there.flops == sum(flops.train_step(config, network, size).values()) > 0
    assert there.peak == 67e12 * jax.device_count()
    half = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))
    assert accounting.work(half, network, size).peak == 989e12 * jax.device_count()


def late(config, number, seconds):
    """The toy's streams; the batch of that number is read so many seconds late."""

    class Late(toy.Stream):
        def __next__(self):
            if self.n == number * self.batch_size:
                time.sleep(seconds)
            return super().__next__()

    return {
        name: lambda rows, n, name=name, size=stream.batch_size: Late(name, size, rows, n)
        for name, stream in config.streams.items()
    }


def test_a_run_says_what_its_time_went_to(tmp_path):
    config = toy.config(steps=4, checkpoint=dict(every=2))
    work = accounting.Work(samples={name: s.batch_size for name, s in config.streams.items()})
    toy.run(config, tmp_path, devices=ONE, work=work, streams=late(config, 2, 0.6))
    *lines, last = jsonl.read(str(tmp_path))
    waits = [line["data_wait"] for line in (*lines, last)]
    assert len(waits) == 4 and all(0 <= wait <= 1 for wait in waits) and max(waits) > 0.5
    assert 0 < last["goodput"] <= 1 and last["samples_per_second/robot"] > 0
    assert last["seconds/compile"] > last["seconds_per_step"]
    assert {"seconds/init", "seconds/evaluate", "seconds/save"} <= set(last)
    assert "mfu" not in last and (tmp_path / accounting.STARTED).is_file()
