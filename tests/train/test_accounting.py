"""Rates and the use of a run's time, as they stand in its metrics."""

import dataclasses
import json
import time

import jax
import pytest

from tests.train import toy
from vla_jax import config as config_lib
from vla_jax.parallel import chips
from vla_jax.train import accounting, flops, smoke
from vla_jax.train.writers import jsonl

ONE = jax.devices()[:1]


def test_rates_follow_from_the_time_of_a_train_step(tmp_path):
    work = accounting.Work(samples={"robot": 64, "vl": 32}, tokens=960, flops=6e12, peak=4e13)
    account = accounting.Account(str(tmp_path), work)
    account.spend("save", 1.5)
    account.spend("save", 1.0)
    found = account.line(1, 0.5)
    assert found["samples_per_second/robot"] == 128 and found["tokens_per_second"] == 1920
    assert found["mfu"] == pytest.approx(0.3) and found["seconds/save"] == 2.5


def test_goodput_counts_from_the_first_start(tmp_path):
    accounting.Account(str(tmp_path), None)
    began = tmp_path / accounting.STARTED
    began.write_text(json.dumps({"unix_time": time.time() - 1000}))
    again = accounting.Account(str(tmp_path), None)  # after a crash
    assert again.line(100, 4.0)["goodput"] == pytest.approx(0.4, rel=0.05)
    assert again.line(10**6, 4.0)["goodput"] == 1


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
