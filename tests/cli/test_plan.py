"""`vla plan` as a user types it."""

import json

import pytest

from vla_jax.cli import main


def last_json(capfd) -> dict:
    return json.loads(capfd.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_octo_base_on_256_chips(capfd):
    words = ["plan", "--config", "configs/octo_base.py", "--topology", "cpu:256"]
    assert main.main([*words, "--config.mesh.fsdp=8"]) == 0
    sharded = last_json(capfd)
    assert sharded["devices"] == 256 and sharded["plan_rss_mb"] < 2048 and sharded["plan_s"] > 0
    assert main.main(words) == 0
    whole = last_json(capfd)
    state = "parameter_bytes", "optimizer_bytes"
    assert sum(sharded[s] for s in state) < sum(whole[s] for s in state) / 7


def test_what_does_not_fit_together_is_said(capsys):
    assert main.main(["plan", "--config", "configs/octo_small.py", "--topology", "v9:4"]) == 2
    assert "Known: a100" in capsys.readouterr().err
    assert main.main(["plan", "--config", "configs/octo_smal.py", "--topology", "cpu:4"]) == 2
    assert "octo_smal" in capsys.readouterr().err
