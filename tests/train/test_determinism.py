"""`vla train --verify-determinism` over real data: the same twice, and a difference is named."""

import dataclasses

import jax
import pytest

from tests import two_streams
from vla_jax.train import assemble, determinism


@pytest.mark.mesh
def test_three_train_steps_twice(fixtures_dir, tmp_path, monkeypatch):
    tokenizer = two_streams.text_tokenizer(tmp_path)
    config = two_streams.config(fixtures_dir, tokenizer, mesh=dict(data=2, fsdp=2, tensor=2))
    assembly = assemble.assemble(config)
    before = sorted(tmp_path.iterdir())
    assert determinism.verify(assembly) == dict(bitwise_equal=True, train_steps=3, differ=[])
    assert sorted(tmp_path.iterdir()) == before

    train, calls = assemble.train, []

    def drifting(assembly, workdir):
        state = train(assembly, workdir)
        calls.append(workdir)
        if len(calls) == 1:
            return state
        trained = jax.tree.map(lambda x: x, state.trained)
        head = trained["params"]["heads_point"]
        name = next(iter(head))
        head[name] = jax.tree.map(lambda x: x * (1 + 1e-6), head[name])
        return dataclasses.replace(state, trained=trained)

    monkeypatch.setattr(assemble, "train", drifting)
    found = determinism.verify(assembly)
    assert not found["bitwise_equal"]
    assert found["differ"] and all("heads_point" in path for path in found["differ"])
