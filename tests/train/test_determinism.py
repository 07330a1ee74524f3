"""`vla train --verify-determinism`: the same twice over real data, and a difference is named."""

import dataclasses

import jax
import pytest

from tests import two_streams
from tests.train import toy
from vla_jax.train import assemble, determinism


@pytest.mark.slow
def test_three_train_steps_twice(fixtures_dir, tmp_path):
    tokenizer = two_streams.text_tokenizer(tmp_path)
    mesh = dict(data=2, fsdp=2, tensor=2)
    config = two_streams.config(fixtures_dir, tokenizer, mesh=mesh)
    before = sorted(tmp_path.iterdir())
    found = determinism.verify(assemble.assemble(config))
    assert found == dict(bitwise_equal=True, train_steps=3, differ=[])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("drift", [0.0, 1e-6])
def test_a_difference_is_named(monkeypatch, drift):
    runs = []

    def train(assembly, workdir):
        state = toy.run(assembly.config, workdir, devices=jax.devices()[:1])
        runs.append(workdir)
        kernel = state.trained["params"]["kernel"] * (1 + drift * len(runs))
        trained = {"params": {**state.trained["params"], "kernel": kernel}}
        return dataclasses.replace(state, trained=trained)

    monkeypatch.setattr(assemble, "train", train)
    rest = {field.name: None for field in dataclasses.fields(assemble.Assembly)}
    found = determinism.verify(assemble.Assembly(**(rest | dict(config=toy.config()))))
    assert found["bitwise_equal"] == (not drift) and len(set(runs)) == 2
    assert found["differ"] == (["trained/params/kernel"] if drift else [])
