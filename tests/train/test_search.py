"""The search over plans: what is tried, what is left out, and who comes first."""

import dataclasses
import json
import math

import jax
import pytest

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.cli import main
from vla_jax.parallel import chips
from vla_jax.parallel import mesh as meshes
from vla_jax.train import plan, search, smoke, start

GIVEN = config_lib.MeshConfig()


@pytest.fixture(scope="module")
def config():
    small = smoke.shrink(config_lib.load("configs/octo_small.py"), dict(data=8))
    return dataclasses.replace(small)


def test_shapes_are_all_ways_to_split():
    found = list(search.shapes(16, GIVEN))
    assert all(math.prod(mesh.values()) == 16 for mesh in found)
    assert len({tuple(mesh.values()) for mesh in found}) == len(found) == 5 + 4 + 3 + 2
    assert found[0] == dict(data=16, fsdp=1, tensor=1, sequence=1)
    halves = list(search.shapes(16, dataclasses.replace(GIVEN, sequence=2)))
    assert all(mesh["sequence"] == 2 and math.prod(mesh.values()) == 16 for mesh in halves)
    with pytest.raises(plugin.UserError, match="sequence"):
        list(search.shapes(16, dataclasses.replace(GIVEN, sequence=3)))


@dataclasses.dataclass
class Machine:
    """Stands in for `plan.make`: memory falls with remat and fsdp, time with remat not at all."""

    tried: list

    def make(self, config, chip, found):
        mesh, remat = config.mesh, config.model.trunk["remat"]
        rows = sum(stream.batch_size for stream in config.streams.values())
        if mesh.tensor == 2:
            raise plugin.UserError("heads do not divide")
        kept = [4, 2, 1][search.REMAT.index(remat)]
        self.tried.append((mesh.fsdp, kept, rows))
        held = 100 / mesh.fsdp + kept * rows
        return dict(
            fits=held <= chip.memory,
            program_bytes=held,
            temporary_bytes=kept * rows,
            step_lower_bound_s=float(mesh.fsdp + rows),
            bound_by="network",
            mfu_bound=0.5,
            collectives={"all-gather": {"bytes": mesh.fsdp}},
        )


@pytest.fixture
def machine(monkeypatch):
    made = Machine([])
    monkeypatch.setattr(search.plan, "make", made.make)
    monkeypatch.setattr(search, "state_bytes", lambda config, found: 100 / config.mesh.fsdp)
    return made


def test_only_what_can_win_is_compiled(config, machine):
    chip = dataclasses.replace(chips.CHIPS["h100"], memory=60.0)
    rows = sum(stream.batch_size for stream in config.streams.values())
    assert rows == 8
    found = search.search(config, chip, jax.devices()[:4], factors=(4, 1, 2))
    # fsdp 1: the state alone is too large. fsdp 2: 8 rows fit with full remat, 16 do not at all, so
    # 32 is not tried. fsdp 4: all fit, each with more remat. tensor 2 is refused.
    assert machine.tried == [
        *((2, kept, 8) for kept in (4, 2, 1)),
        *((2, kept, 16) for kept in (4, 2, 1)),
        (4, 4, 8),
        *((4, kept, 16) for kept in (4, 2)),
        *((4, kept, 32) for kept in (4, 2, 1)),
    ]
    fits = [row for row in found["rows"] if row["outcome"] == "fits"]
    times = [row["s_per_sample"] for row in fits]
    assert times == sorted(times) and found["rows"][: len(fits)] == fits
    assert sum(found["counts"].values()) >= len(found["rows"])
    assert found["counts"]["state does not fit"] == 3  # fsdp 1, with tensor 1, 2 and 4
    assert found["counts"]["refused"] == 3 and found["counts"]["not needed"] == 3 + 2 + 1 + 3 * 2
    said = search.text(found, config)
    assert "the best: --config.mesh.data=" in said and "heads do not divide" in said


def test_a_batch_that_divides_only_as_a_multiple_is_tried(config, machine, monkeypatch):
    """8 rows over 8 devices in 3 microbatches: 24 rows divide, 8 and 16 do not."""

    def state_bytes(config, found):
        start.check_batches(config, meshes.make(dataclasses.asdict(config.mesh), found))
        return 0

    monkeypatch.setattr(search, "state_bytes", state_bytes)
    optimizer = dataclasses.replace(config.optimizer, accumulation=3)
    thirds = dataclasses.replace(config, optimizer=optimizer)
    search.search(thirds, chips.CHIPS["h100"], jax.devices(), factors=(1, 2, 3))
    assert any(rows == 24 for _, _, rows in machine.tried)
    machine.tried.clear()
    found = search.search(thirds, chips.CHIPS["h100"], jax.devices(), factors=(1, 2))
    assert not machine.tried and "not divisible" in found["rows"][0]["why"]


def test_time_runs_out(config, machine):
    found = search.search(config, chips.CHIPS["h100"], jax.devices()[:4], seconds=-1.0)
    assert not machine.tried and found["counts"]["no time"] > 0 and "fits" not in found["counts"]


@pytest.mark.slow
@pytest.mark.mesh
def test_a_row_is_the_plan_of_its_flags(config):
    """One real compilation: the state's bytes are those of the plan, the figures its own."""
    mesh = dict(data=2, fsdp=4, tensor=1, sequence=1)
    made = search.changed(config, mesh, search.REMAT[-1], 2)
    figures = plan.make(made, chips.CHIPS["h100"], jax.devices()[:8])
    state = search.state_bytes(made, jax.devices()[:8])
    parts = ("parameter_bytes", "optimizer_bytes", "ema_bytes")
    assert state - 4 == sum(figures[part] for part in parts)  # the counter of train_steps
    row = search._tried(made, chips.CHIPS["h100"], jax.devices()[:8])
    assert row["outcome"] == "fits" and row["program_bytes"] == figures["program_bytes"]
    assert row["s_per_sample"] == pytest.approx(figures["step_lower_bound_s"] / 16)
    flags = search.settings(dict(mesh=mesh, remat="full", batch_factor=2), config)
    assert "--config.mesh.fsdp=4" in flags and "--config.model.trunk.remat=full" in flags
    assert f"--config.streams.{next(iter(config.streams))}.batch_size=16" in flags


@pytest.mark.slow
def test_the_verb_on_eight_fake_devices(capfd, tmp_path, config):
    (tmp_path / "small.json").write_text(config_lib.to_json(config))
    (tmp_path / "small.py").write_text(
        "import json, pathlib\n"
        "def get_config(arg):\n"
        "    return json.loads(pathlib.Path(__file__).with_suffix('.json').read_text())\n"
    )
    words = ["plan", "--config", str(tmp_path / "small.py"), "--topology", "cpu:8", "--search"]
    assert main.main([*words, "--memory", "0.5"]) == 0
    last = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert last["rows"][0]["outcome"] == "fits" and last["plan_s"] >= last["search_s"] > 0


def test_mistakes_are_said(capsys):
    words = ["plan", "--config", "configs/octo_small.py", "--topology", "cpu:4"]
    assert main.main([*words, "--batch-factors", "1,x"]) == 2
    assert "--batch-factors" in capsys.readouterr().err
