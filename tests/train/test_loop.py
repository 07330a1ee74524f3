import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import toy
from vla_jax import plugin, trees
from vla_jax.parallel import arrays, processes
from vla_jax.parallel import mesh as meshes
from vla_jax.train import checkpoint, hooks, loop, program, start
from vla_jax.train import log as logs
from vla_jax.train.writers import jsonl

ONE = jax.devices()[:1]


def same(a, b):
    """Whether two trees agree bit for bit."""
    assert trees.diff(a, b) == ""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b))
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


class Recorder:
    """Remembers which rows were drawn."""

    def __init__(self, config):
        self.rows = []
        self.openers = {
            name: lambda rows, n, opener=opener: self._watch(opener(rows, n))
            for name, opener in toy.streams(config).items()
        }

    def _watch(self, stream):
        draw = type(stream).__next__

        class Watched(toy.Stream):
            def __next__(watched):
                rows = draw(watched)
                self.rows.append((watched.stream, rows["row_id"].tolist()))
                return rows

        stream.__class__ = Watched
        return stream


@pytest.mark.mesh
def test_two_and_two_equal_four_bit_for_bit(tmp_path):
    whole, parts = Recorder(toy.config()), Recorder(toy.config())
    four = toy.run(toy.config(), tmp_path / "four", streams=whole.openers)
    # The run is stopped by a hook that stands for SIGTERM; the same config goes on.
    stop = hooks.Hook(
        name="stop", every=2, call=lambda step, _: os.kill(os.getpid(), signal.SIGTERM)
    )
    interrupted = dataclasses.replace(
        toy.config(), checkpoint=toy.config(checkpoint=dict(every=100)).checkpoint
    )
    two = toy.run(interrupted, tmp_path / "two", streams=parts.openers, hooks=[_once(stop)])
    assert int(two.step) == 2
    assert checkpoint.read_meta(checkpoint.find(str(tmp_path / "two"))).n == {"robot": 32, "vl": 16}
    resumed = toy.run(toy.config(), tmp_path / "two", streams=parts.openers)
    assert int(resumed.step) == int(four.step) == 4
    assert same(four, resumed)
    # The order of the data too. The first half had drawn one batch more, which nobody had taken:
    # the resume point counts what was trained on, and the second half draws it again.
    assert parts.rows[4:6] == parts.rows[-4:-2] == whole.rows[4:6]
    assert whole.rows == parts.rows[:4] + parts.rows[-4:]
    losses = [[row["loss"] for row in jsonl.read(tmp_path / name)] for name in ("four", "two")]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def _once(hook):
    calls = []

    def call(step, state):
        if not calls:
            calls.append(step)
            hook.call(step, state)
        return {}

    return hooks.Hook(name=hook.name, every=hook.every, call=call)


@pytest.mark.mesh
def test_restart_from_a_resume_point_on_another_mesh(tmp_path):
    config = toy.config(mesh=dict(data=2, fsdp=2, tensor=2))
    toy.run(config, tmp_path)
    first = jax.device_get(checkpoint.load(str(tmp_path), step=2, averaged=False).variables)
    for axes in (dict(data=1, fsdp=8), dict(data=8), dict(data=4, tensor=2)):
        plan = start.plan(config, toy.Model(), toy.batches(config), meshes.make(axes))
        saver = checkpoint.Checkpoints(str(tmp_path), config, checkpoint.Assets())
        state, meta = saver.restore(plan.abstract, step=2)
        saver.close()
        assert same(first, jax.device_get(state.variables))
        assert (int(state.step), meta.n) == (2, {"robot": 32, "vl": 16})
        assert jax.tree.map(lambda x: x.sharding, state) == plan.shardings


@pytest.mark.parametrize("where", [(logs.Log, "flush"), (checkpoint.Checkpoints, "wait")])
def test_waiting_for_devices_and_disks_is_watched(where, tmp_path, monkeypatch):
    """Before validation and hooks, which may take their time, before saves, and at the end."""
    at, seen = [None], []
    monkeypatch.setattr(processes.Progress, "at", lambda _, what, others=False: at.append(what))
    wait = getattr(*where)
    monkeypatch.setattr(*where, lambda *given: (seen.append(at[-1]), wait(*given))[1])
    probe = hooks.Hook(name="probe", every=2, call=lambda *_: seen.append(at[-1]) or {})
    toy.run(toy.config(), tmp_path, hooks=[probe], devices=ONE)
    assert seen.count(None) == 2 and len(seen) > 2  # the hook's own calls alone


def test_one_stream_loss_falls_with_validation_best_and_hook(tmp_path):
    config = toy.config(
        steps=12,
        optimizer=dict(lr=3e-2, ema=None),
        checkpoint=dict(every=6, keep=1, best_metric="validation/robot/action", best_keep=1),
        validation=dict(every=6, batches=2),
        writers=("jsonl", "tensorboard"),
    )
    config = dataclasses.replace(config, streams={"robot": config.streams["robot"]})
    seen = []

    def look(step, state):
        seen.append((step, state.averaged is not None))
        return {"ticks": step}

    state = toy.run(
        config,
        tmp_path,
        validation=toy.streams(config, seed=1),
        hooks=[hooks.Hook(name="probe", every=5, call=look)],
        devices=ONE,
    )
    rows = jsonl.read(tmp_path)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 12 and losses[-1] < losses[0]
    held_out = {row["step"]: row for row in rows if "validation/robot/action" in row}
    assert set(held_out) == {6, 12}
    assert seen == [(5, True), (10, True), (12, True)]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["12"]
    best = min(held_out, key=lambda step: held_out[step]["validation/robot/action"])
    assert [p.name for p in (tmp_path / "best").iterdir()] == [str(best)]
    assert list((tmp_path / "tensorboard").iterdir())
    assert same(checkpoint.load(str(tmp_path)).variables, jax.device_get(state.variables))
    held_out = toy.streams(config, seed=1)
    again = toy.run(config, tmp_path, validation=held_out, devices=ONE)
    assert again.step == 12  # finished: nothing to do


def test_pretrained_parameters_begin_and_the_rest_is_fresh(tmp_path):
    config = toy.config(steps=1, freeze=((".*", False),))
    mesh = meshes.make(devices=ONE)
    plan = start.plan(config, toy.Model(), toy.batches(config), mesh)
    value = np.full(plan.variables["params"]["kernel"].shape, 0.5, np.float32)

    def pretrained(shapes):
        return {**shapes, "params": {**shapes["params"], "kernel": value}}

    state, fresh = start.fresh(plan, pretrained), start.fresh(plan)
    assert np.array_equal(state.trained["params"]["kernel"], value)
    assert np.array_equal(state.ema["params"]["kernel"], value)
    assert same(state.trained["params"]["stem"], fresh.trained["params"]["stem"])
    toy.run(config, tmp_path, pretrained=pretrained, devices=ONE)


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path):
    config = toy.config()
    broken = {
        **toy.OBJECTIVES,
        "vl": {"point": (toy.Square(head="vl", target="point"), float("nan"))},
    }
    with pytest.raises(plugin.UserError, match="train_step 1: the loss is nan"):
        toy.run(config, tmp_path, objectives=broken, devices=ONE)
    assert not (tmp_path / "checkpoints").exists()


def test_updates_that_are_left_out(tmp_path):
    """Two broken train_steps are counted and change nothing; 25 in a row are an error."""
    weight = ((0, 1.0), (1.5, 1.0), (2, float("nan")))
    broken = {**toy.OBJECTIVES, "vl": {"point": (toy.Square(head="vl", target="point"), weight)}}
    config = toy.config(steps=4, optimizer=dict(skip=0.0))
    state = toy.run(config, tmp_path / "a", objectives=broken, devices=ONE)
    lines = {line["step"]: line for line in jsonl.read(str(tmp_path / "a"))}
    assert [lines[i]["skipped"] for i in (1, 2, 3, 4)] == [0, 0, 1, 1]
    assert "loss" in lines[1] and "loss" not in lines[3]
    two = toy.run(toy.config(steps=4, optimizer=dict(skip=0.0)), tmp_path / "b", devices=ONE)
    assert not same(two.trained, state.trained)
    config = toy.config(steps=40, optimizer=dict(skip=0.0), checkpoint=dict(every=100))
    with pytest.raises(plugin.UserError, match="25th update in a row that was left out"):
        toy.run(config, tmp_path / "c", objectives=broken, devices=ONE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Struck(toy.Square):
    """Its value is off at some batches of 8 rows; its gradient is what it always is."""

    at: tuple[tuple[int, float], ...]  # (first row of a batch, what is added)

    def __call__(self, answers, errors, batch):
        total, metrics = super().__call__(answers, errors, batch)
        for row, added in self.at:
            total += jnp.where(batch.row_id[0] == row, added, 0.0)
        return total, metrics


def test_a_loss_that_spikes_or_breaks_is_left_out_and_counted(tmp_path):
    """Only the loss is wrong, the gradient is fine: nothing moves but the counts."""
    spike, nan = 24, 26  # train_steps
    at = ((8 * (spike - 1), 1e4), (8 * (nan - 1), float("nan")))
    struck = {**toy.OBJECTIVES, "vl": {"point": (Struck(head="vl", target="point", at=at), 0.5)}}
    states, counts = {}, {}

    def look(step, state):
        inner = state.opt_state.inner
        states[step] = jax.device_get((state.trained, inner, state.opt_state.norm))
        counts[step] = int(state.opt_state.skipped)
        return {}

    hook = hooks.Hook(name="look", every=1, call=look)
    config = toy.config(steps=28, optimizer=dict(skip=0.0), checkpoint=dict(every=28))
    state = toy.run(config, tmp_path, objectives=struck, hooks=[hook], devices=ONE)
    assert int(state.step) == 28 and counts[28] == 2 and counts[spike - 1] == 0
    for done in range(21, 29):
        assert same(states[done], states[done - 1]) == (done in (spike, nan)), done
    lines = {line["step"]: line for line in jsonl.read(tmp_path) if "lr" in line}
    assert [done for done in lines if lines[done]["skipped"]] == [spike, nan]
    assert lines[spike]["loss"] > 100 > lines[28]["loss"] and "loss" not in lines[nan]
    assert lines[spike]["gradient_norm"] < 10 * lines[spike - 1]["gradient_norm"]


def test_the_state_is_donated(tmp_path):
    """What goes into a train_step is gone after it, all of it; and its output lies there."""
    config = toy.config()
    plan = start.plan(config, toy.Model(), toy.batches(config), meshes.make(devices=ONE))
    with meshes.use(plan.mesh):
        run = program.train_step(config, toy.Model(), toy.OBJECTIVES, plan)
        state, batches = start.fresh(plan), arrays.global_batch(toy.batches(config), plan.mesh)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        memory = program.lower(run, plan, batches).compile().memory_analysis()
        after, _ = run(state, batches)
    kept = [path for path, leaf in trees.items(state) if not leaf.is_deleted()]
    assert kept == [] and not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))
    assert memory.alias_size_in_bytes == size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(log_every=0), "config.log_every: got 0"),
        (dict(checkpoint=dict(every=0)), "config.checkpoint.every: got 0"),
        (dict(validation=dict(every=-1)), "config.validation.every: got -1"),
        (dict(checkpoint=dict(best_metric="validation/robot/action")), "best_metric: unknown"),
        (dict(writers=("jsonl", "tensorbord")), "did you mean 'tensorboard'"),
    ],
)
def test_settings_that_cannot_work_leave_nothing(tmp_path, changes, message):
    with pytest.raises(plugin.UserError, match=message):
        toy.run(toy.config(**changes), tmp_path / "run", devices=ONE, ready=pytest.fail)
    assert not (tmp_path / "run").exists()


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    config = toy.config(steps=1, optimizer=dict(lr=float("inf")))
    with pytest.raises(plugin.UserError, match="train_step 1: .*parameters' norm (nan|inf)"):
        toy.run(config, tmp_path, devices=ONE)
    assert not (tmp_path / "checkpoints").exists()


def test_what_a_resumed_run_must_not_change(tmp_path):
    config = toy.config(steps=1)
    assets = checkpoint.Assets(text_tokenizer=b"pieces")
    toy.run(config, tmp_path, devices=ONE, assets=assets)
    more = dataclasses.replace(config, steps=2)
    with pytest.raises(plugin.UserError, match="the pieces of the text tokenizer have changed"):
        toy.run(more, tmp_path, devices=ONE, assets=checkpoint.Assets(text_tokenizer=b"others"))
    fewer = {"robot": config.streams["robot"]}
    with pytest.raises(plugin.UserError, match=r"trained with \['vl'\] too"):
        meta = checkpoint.read_meta(checkpoint.find(str(tmp_path)))
        loop._check_order(dataclasses.replace(config, streams=fewer), assets, meta)


def test_a_resumed_run_must_see_the_same_data(tmp_path, caplog):
    config = toy.config(steps=1)
    table = {"robot": {"fingerprint": "a", "table": "demos 1.0"}}
    toy.run(config, tmp_path, devices=ONE, assets=checkpoint.Assets(mixtures=table))
    other = {"robot": {"fingerprint": "b", "table": "demos 0.5"}}
    more = dataclasses.replace(config, steps=2)
    with pytest.raises(plugin.UserError, match="(?s)mixture has changed.*demos 1.0.*demos 0.5"):
        toy.run(more, tmp_path, devices=ONE, assets=checkpoint.Assets(mixtures=other))
    with pytest.raises(plugin.UserError, match="config.seed: got 7"):
        toy.run(dataclasses.replace(more, seed=7), tmp_path, devices=ONE)
    asked = dataclasses.replace(more, accept_changed_data=True)
    state = toy.run(asked, tmp_path, devices=ONE, assets=checkpoint.Assets(mixtures=other))
    assert int(state.step) == 2 and "it goes on with sample 16" in caplog.text


def test_batches_must_divide():
    config = toy.config(optimizer=dict(accumulation=3))
    with pytest.raises(
        plugin.UserError, match=r"robot.batch_size: 16 .* by 1 .* x 3 .*nearest: 15"
    ):
        start.check_batches(config, meshes.make(devices=ONE))


def test_jsonl_of_a_resumed_run(tmp_path):
    lines = [dict(step=1, loss=1.0), dict(step=2, loss=2.0), dict(step=3, loss=9.0)]
    lines += [dict(step=3, loss=3.0, other=None), dict(step=2, loss=5.0), dict(step=3, loss=6.0)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [row["loss"] for row in jsonl.read(tmp_path)] == [1.0, 5.0, 6.0]
