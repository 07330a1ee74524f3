"""From a config to a run: what a resumed one still needs."""

import dataclasses
import pathlib
import shutil

import pytest

from tests.policy import recorded
from vla_jax import config as config_lib
from vla_jax import plugin


@pytest.mark.mesh
@pytest.mark.slow
def test_a_resumed_run_does_not_need_what_it_began_from(tmp_path, monkeypatch):
    from vla_jax.train import assemble, stored

    before, run = recorded.run(tmp_path / "before"), str(tmp_path / "run")
    (tmp_path / "robot.py").write_text(recorded.ROBOT)
    config = dataclasses.replace(
        before.assembly.config,
        embodiments=(str(tmp_path / "robot.py"),),
        text_tokenizer=None,
        normalizer=config_lib.NormalizerConfig(stats="checkpoint"),
        init_from=config_lib.InitFromConfig(checkpoint=before.workdir),
        checkpoint=config_lib.CheckpointConfig(every=1),
    )
    # No host reads a whole checkpoint, neither to begin nor to go on.
    whole = lambda path: pytest.fail(f"reads all of {path}")  # noqa: E731
    monkeypatch.setattr(stored, "_restore_numpy", whole)
    first = assemble.assemble(config, run)
    assert first.start.folder.is_relative_to(pathlib.Path(before.workdir))
    assert int(assemble.train(first, run).step) == 1

    shutil.rmtree(before.workdir)
    monkeypatch.setattr(stored.Stored, "place", lambda *_: pytest.fail("reads what it has"))
    with pytest.raises(plugin.UserError, match="does not exist"):
        assemble.assemble(config, str(tmp_path / "other"))
    again = assemble.assemble(dataclasses.replace(config, steps=2), run)
    assert again.normalizer.to_json() == first.normalizer.to_json()
    assert again.text_tokenizer == first.text_tokenizer
    assert int(assemble.train(again, run).step) == 2
