"""The search over plans: what is tried, what is left out, and who comes first."""

import dataclasses
import itertools
import json
import math

import jax
import pytest

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.cli import main
from vla_jax.parallel import chips
from vla_jax.train import bounds, feed, plan, search, smoke

GIVEN = config_lib.MeshConfig()


@pytest.fixture(scope="module")
def config():
    """The least one that has a trunk: its programs compile in seconds."""
    return smoke.shrink(config_lib.load("configs/debug.py"), dict(data=8))


def test_shapes_are_all_ways_to_split():
    found = list(search.shapes(16, GIVEN))
    assert all(math.prod(mesh.values()) == 16 for mesh in found)
    assert len({tuple(mesh.values()) for mesh in found}) == len(found) == 5 + 4 + 3 + 2
    assert found[0] == dict(data=16, fsdp=1, tensor=1, sequence=1)
    halves = list(search.shapes(16, dataclasses.replace(GIVEN, sequence=2)))
    assert all(mesh["sequence"] == 2 and math.prod(mesh.values()) == 16 for mesh in halves)
    with pytest.raises(plugin.UserError, match="sequence"):
        list(search.shapes(16, dataclasses.replace(GIVEN, sequence=3)))


KEPT = dict(none=4, dots=2, full=1)


@dataclasses.dataclass
class Machine:
    """Stands in for `plan.make` and the bounds: memory falls with remat and fsdp."""

    tried: list

    def make(self, config, chip, found):
        mesh, remat = config.mesh, config.model.trunk["remat"]
        rows = sum(stream.batch_size for stream in config.streams.values())
        if mesh.tensor == 2:
            raise plugin.UserError("heads do not divide")
        self.tried.append((mesh.data, mesh.fsdp, mesh.tensor, remat, rows))
        held = 100 / mesh.fsdp + KEPT[remat] * rows
        return dict(
            fits=held <= chip.memory,
            program_bytes=held,
            refusal=None,
            temporary_bytes=KEPT[remat] * rows,
            step_lower_bound_s=float(mesh.fsdp + rows),
            bound_by="network",
            mfu_bound=0.5,
            collectives={"all-gather": {"bytes": mesh.fsdp}},
        )

    def of(self, mesh, remat, factor):
        rows, state = 8 * factor, 100 / mesh["fsdp"]
        return bounds.Bound(
            state_bytes=state,
            held_bytes=state,
            kept_bytes=KEPT[remat] * rows / 2,
            least_s=rows + 0.5,
            estimated_s=rows + mesh["fsdp"] / 2,
            estimated_sent=mesh["fsdp"],
        )


@pytest.fixture
def machine(monkeypatch):
    made = Machine([])
    monkeypatch.setattr(search.plan, "make", made.make)
    monkeypatch.setattr(search.bounds, "Bounds", lambda *given: made)
    return made


def with_memory(size: float) -> chips.Chip:
    return dataclasses.replace(chips.CHIPS["h100"], memory=size)


@pytest.mark.parametrize("memory", [30.0, 45.0, 60.0, 90.0, 140.0, 300.0])
def test_the_best_is_that_of_trying_all(config, machine, memory):
    assert sum(stream.batch_size for stream in config.streams.values()) == 8
    chip, devices, factors = with_memory(memory), jax.devices()[:4], (4, 1, 2)
    best = {}
    for mesh in search.shapes(4, GIVEN):
        for factor, remat in itertools.product(factors, KEPT):
            try:
                whole = machine.make(bounds.changed(config, mesh, remat, factor), chip, devices)
            except plugin.UserError:
                continue
            if whole["fits"]:
                per_sample = whole["step_lower_bound_s"] / (8 * factor)
                best[tuple(mesh.values()), factor] = per_sample
    everything, machine.tried = len(machine.tried), []
    found = search.search(config, chip, devices, factors=factors, compilations=99)
    fits = [row for row in found["rows"] if row["outcome"] == "fits"]
    assert bool(fits) == bool(best) and found["rows"][: len(fits)] == fits
    if best:
        assert fits[0]["s_per_sample"] == min(best.values())
    times = [row["s_per_sample"] for row in fits]
    assert times == sorted(times)
    assert len(machine.tried) == len(set(machine.tried)) == found["compilations"]
    assert found["compilations"] < 0.6 * everything


def test_nothing_is_compiled_that_shapes_rule_out(config, machine):
    found = search.search(config, with_memory(60.0), jax.devices()[:4], factors=(1, 2))
    assert all(
        100 / fsdp + KEPT[remat] * rows / 2 <= 60 for _, fsdp, _, remat, rows in machine.tried
    )
    assert found["counts"]["state does not fit"] == 3  # fsdp 1, with tensor 1, 2 and 4
    assert found["counts"]["refused"] >= 1 and found["counts"]["cannot fit"] >= 1
    said = search.text(found, config)
    assert "the best: --config.mesh.data=" in said and "heads do not divide" in said
    assert f"{found['compilations']} compilations" in said


def test_it_ends_after_so_many_compilations_or_seconds(config, machine):
    notes = []
    limits = dict(factors=(1, 2, 4), compilations=2, note=notes.append)
    found = search.search(config, with_memory(90.0), jax.devices()[:8], **limits)
    assert len(machine.tried) == found["compilations"] == 2 and found["counts"]["not tried"] > 0
    begun = next(note for note in notes if note["outcome"] == "to try")
    assert begun["at_most"] == 2 < begun["candidates"]
    assert [n["compilation"] for n in notes if "compilation" in n] == ["1/2", "2/2"]
    machine.tried.clear()
    found = search.search(config, with_memory(90.0), jax.devices()[:8], seconds=-1.0)
    assert not machine.tried and "fits" not in found["counts"]
    with pytest.raises(plugin.UserError, match="expected 1 or more"):
        search.search(config, with_memory(90.0), jax.devices()[:8], compilations=0)


def test_without_peaks_what_sends_least_is_looked_at_first(config, machine, monkeypatch):
    """Of a CPU nobody knows how long anything takes."""
    bound, make = machine.of, machine.make
    unknown = dict(least_s=0.0, estimated_s=0.0)
    machine.of = lambda *given: dataclasses.replace(bound(*given), **unknown)
    none = dict.fromkeys(("step_lower_bound_s", "bound_by", "mfu_bound"))
    monkeypatch.setattr(search.plan, "make", lambda *given: make(*given) | none)
    found = search.search(config, with_memory(200.0), jax.devices()[:4], compilations=3)
    assert found["compilations"] == 3 and "not as fast" not in found["counts"]
    first = found["rows"][0]
    assert first["outcome"] == "fits" and first["mesh"]["fsdp"] == 1 and not first["s_per_sample"]


def test_a_batch_that_divides_only_as_a_multiple_has_bounds(config):
    """8 rows over 8 devices in 3 microbatches: 24 rows divide, 8 and 16 do not."""
    optimizer = dataclasses.replace(config.optimizer, accumulation=3)
    thirds, chip = dataclasses.replace(config, optimizer=optimizer), chips.CHIPS["h100"]
    mesh = dict(data=8, fsdp=1, tensor=1, sequence=1)
    found = bounds.Bounds(thirds, chip, jax.devices(), (1, 2, 3))
    three, one = (found.of(mesh, "full", factor) for factor in (3, 1))
    assert three.kept_bytes == pytest.approx(3 * one.kept_bytes, rel=1e-3)
    with pytest.raises(plugin.UserError, match="not divisible"):
        bounds.Bounds(thirds, chip, jax.devices(), (1, 2))


def test_layers_keep_what_remat_says(config):
    """With "full", the input of each layer, [depth, B, L, D] in float32, and no more."""
    found = bounds.Bounds(config, chips.CHIPS["h100"], jax.devices())
    network, _ = smoke.parts(config, None)
    (name,) = config.streams
    tokens = config.streams[name].batch_size * network.layout(name).length
    sizes = config.model.trunk
    assert found.kept("full") == 4 * sizes["depth"] * tokens * sizes["width"]
    assert found.kept("none") > found.kept("dots") > found.kept("full")


@pytest.mark.slow
@pytest.mark.mesh
@pytest.mark.parametrize("axes", [(8, 1, 1), (1, 4, 2)])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_row_is_the_plan_of_its_flags_and_above_its_bound(config, axes, remat):
    """Real compilations: exact where the bound says so, never below it."""
    mesh, devices = dict(zip(("data", "fsdp", "tensor"), axes), sequence=1), jax.devices()[:8]
    chip = chips.CHIPS["h100"]
    bound = bounds.Bounds(config, chip, devices, (2,)).of(mesh, remat, 2)
    figures = plan.make(bounds.changed(config, mesh, remat, 2), chip, devices)
    parts = ("parameter_bytes", "optimizer_bytes", "ema_bytes")
    assert bound.state_bytes == sum(figures[part] for part in parts)
    assert bound.held_bytes == bound.state_bytes + (1 + feed.AHEAD) * figures["batch_bytes"]
    assert bound.kept_bytes < figures["temporary_bytes"]
    assert bound.program_bytes < figures["program_bytes"]
    assert bound.least_s <= figures["step_lower_bound_s"] * search.ROUNDING
    sent = sum(entry["bytes"] for entry in figures["collectives"].values())
    assert 0.5 < bound.estimated_sent / sent < 2
    chosen = search.Candidate(mesh=mesh, factor=2, remat=remat, bound=bound)
    row = search._tried(config, chip, devices, chosen)
    assert row["outcome"] == "fits" and row["program_bytes"] == figures["program_bytes"]
    assert row["s_per_sample"] == pytest.approx(figures["step_lower_bound_s"] / 16)
    flags = search.settings(row, config)
    assert f"--config.mesh.fsdp={axes[1]}" in flags
    assert f"--config.model.trunk.remat={remat}" in flags
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
    words += ["--memory", "0.5", "--batch-factors", "1,2", "--compilations", "3"]
    assert main.main(words) == 0
    said = capfd.readouterr()
    last = json.loads(said.out.splitlines()[-1])
    assert last["rows"][0]["outcome"] == "fits" and last["plan_s"] >= last["search_s"] > 0
    assert last["compilations"] == 3 and "[3/3] mesh" in said.err
    assert "at most 3 compilations" in said.err


def test_mistakes_are_said(capsys):
    words = ["plan", "--config", "configs/octo_small.py", "--topology", "cpu:4"]
    assert main.main([*words, "--batch-factors", "1,x"]) == 2
    assert "--batch-factors" in capsys.readouterr().err
