"""The straight road: mesh → state → data → train_steps, with validation, hooks and checkpoints.

Precedence at the start: a resume point in the workdir, then `pretrained`, then fresh parameters.
The loop never opens a batch: what is in it is between sources, model and objectives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging

from vla_jax import config as config_lib
from vla_jax import plugin, types
from vla_jax.parallel import arrays, processes
from vla_jax.parallel import mesh as meshes
from vla_jax.train import accounting, agree, lock, program, start
from vla_jax.train import checkpoint as checkpoints
from vla_jax.train import feed as feeds
from vla_jax.train import hooks as hooks_lib
from vla_jax.train import log as logs
from vla_jax.train import state as states
from vla_jax.train import step as steps


class Stream(Protocol):
    """An endless iterator of one stream's nested numpy rows, [b, …] for this host."""

    def __next__(self) -> dict[str, Any]:
        """The keyword arguments of `Batch.make`, with the rows of the next global batch."""

    def close(self) -> None:
        """Ends its worker processes."""


# (global rows of this host [b], samples drawn before) -> Stream
Opener = Callable[[np.ndarray, int], Stream]


def run(
    config: config_lib.TrainConfig,
    model: start.Model,
    streams: Mapping[str, Opener],
    *,
    objectives: steps.Objectives,
    examples: Mapping[str, types.Batch],
    workdir: str,
    assets: checkpoints.Assets,
    validation: Mapping[str, Opener] | None = None,
    pretrained: start.Pretrained | None = None,
    hooks: Sequence[hooks_lib.Hook] = (),
    ready: Callable[[], None] = lambda: None,
    work: accounting.Work | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> states.TrainState:
    """The state after `config.steps` train_steps, or fewer when SIGTERM or Ctrl-C asked to stop.

    `streams` and `validation` open a stream's data; `examples` are Batches of the config's shapes.
    `ready` is called when config, parameters and resume point have been found to fit, before the
    first train_step; `work` is what rates are counted by. Raises UserError for what a user can
    cause; a resume point in `workdir` must fit the config.
    """
    measured = [f"validation/{s}/{name}" for s in validation or {} for name in objectives[s]]
    start.check_intervals(config, measured if config.validation.every else [])
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(processes.Progress(config.patience))
        # ---------------------------------------------------------------- mesh, shapes, shardings
        mesh = meshes.make(dataclasses.asdict(config.mesh), devices)
        stack.enter_context(meshes.use(mesh))
        plan = start.plan(config, model, examples, mesh)
        if processes.first():
            print(plan.report(), flush=True)

        # ------------------------------------------------------------------ compiled train_steps
        train_step = program.train_step(config, model, objectives, plan)
        train_step = processes.beginning_together(train_step, "the first train_step")
        eval_step = program.eval_step(config, model, objectives, plan)
        eval_step = processes.beginning_together(eval_step, "the first validation")
        agree.on_data(assets)
        logs.check_writers(config.writers, workdir)  # what a user can cause comes before `ready`

        # ----------------------------------------------------------- state: resumed, or made anew
        stack.enter_context(lock.hold(workdir))
        saver = checkpoints.Checkpoints(workdir, config, assets)
        stack.callback(saver.close)
        stack.push(processes.note_error)  # `close` waits for all, and one may have failed alone
        n, before, clock = dict.fromkeys(streams, 0), {}, time.perf_counter()
        if resumed := saver.latest() is not None:
            state, meta = saver.restore(plan.abstract)
            _check_order(config, assets, meta)
            n, before = n | meta.n, meta.seconds
        else:
            state = start.fresh(plan, pretrained)
        # Two programs with collectives at once can wait for each other for ever on CPUs (Gloo).
        begin, took = int(jax.block_until_ready(state).step), time.perf_counter() - clock
        restored = accounting.restored(state, took) if resumed else {}
        saver.check_space(state)
        made = {"restore" if resumed else "init": took}
        account, clock = accounting.Account(workdir, work, made, before), time.perf_counter()
        ready()

        # -------------------------------------------------------------------------------- data
        rows = {
            name: arrays.rows_of_host(mesh, stream.batch_size)
            for name, stream in config.streams.items()
        }
        opened = {
            name: stack.enter_context(contextlib.closing(opener(rows[name], n[name])))
            for name, opener in (streams if begin < config.steps else {}).items()
        }
        log = logs.Log(workdir, config, begin, account, restored)
        stack.callback(log.close)
        stop = stack.enter_context(hooks_lib.StopSignal())
        feed, metrics = feeds.Feed(opened, mesh, config.steps - begin), None
        stack.callback(feed.close)
        account.spend("init", time.perf_counter() - clock)

        # -------------------------------------------------------------------------------- loop
        for done in range(begin + 1, config.steps + 1):
            progress.at(f"the rows of train_step {done}")
            batches, wait, skipped = feed.take(metrics)
            clock = time.perf_counter()
            progress.at(None if done == begin + 1 else f"train_step {done}", others=True)
            state, metrics = train_step(state, batches)  # dispatched; the device works on
            if done == begin + 1:  # that it had to be compiled is no part of a train_step's time
                log.pause("compile", time.perf_counter() - clock)
            log.add(done, metrics, wait, skipped)  # fetches the metrics of the train_step before
            n = {name: drawn + config.streams[name].batch_size for name, drawn in n.items()}

            # --------------------------------------------------------- validation and hooks
            called = [hook for hook in hooks if hooks_lib.due(done, hook.every, config.steps)]
            validated = validation and hooks_lib.due(done, config.validation.every, config.steps)
            if called or validated:
                log.flush()  # waits for the train_step, whose time is its own
            progress.at(None)
            clock = time.perf_counter()
            if validated:
                held_out = _validate(config, eval_step, state, validation, rows, mesh)
                log.write(done, held_out)
                saver.save_best(done, state, n, held_out)
            for hook in called:
                found = hook.call(done, state)
                log.write(done, {f"{hook.name}/{name}": v for name, v in found.items()})
            log.pause("evaluate", time.perf_counter() - clock)

            # ---------------------------------------------------------------- resume points
            stopping = stop.wished(done)
            if stopping or hooks_lib.due(done, config.checkpoint.every, config.steps):
                progress.at(f"the save of train_step {done}", others=True)
                log.flush()  # raises before a state that is not finite is saved
                clock = time.perf_counter()
                saver.save(done, state, n, account.seconds())
                log.pause("save", time.perf_counter() - clock)
            if stopping:
                logging.warning("asked to stop: saved train_step %d of %d", done, config.steps)
                break
        progress.at("the end of the last save", others=True)
        saver.wait()
    return state


def _validate(config, eval_step, state, validation, rows, mesh) -> dict[str, float]:
    """{"validation/stream/objective": mean} over the same held-out batches each time."""
    sums: dict[str, np.ndarray] = {}
    for name, opener in validation.items():
        with contextlib.closing(opener(rows[name], 0)) as stream:
            for _ in range(config.validation.batches):
                found = eval_step(state.averaged, {name: feeds.placed(stream, mesh)})
                for key, pair in arrays.fetch(found).items():
                    key = f"validation/{key}"
                    sums[key] = sums.get(key, np.zeros(2)) + np.asarray(pair, np.float64)
    return logs.means(sums)


def _check_order(
    config: config_lib.TrainConfig, assets: checkpoints.Assets, meta: checkpoints.Meta
) -> None:
    """UserError when a run cannot go on as it began: other data, seed, streams, statistics."""
    if config.seed != meta.config.seed:
        raise plugin.UserError(
            f"config.seed: got {config.seed}, the checkpoint of train_step {meta.step} was trained "
            f"with {meta.config.seed}; use that seed, or another --workdir with config.init_from"
        )
    lost = sorted(set(meta.n) - set(config.streams))
    if lost:
        raise plugin.UserError(
            f"config.streams: the checkpoint of train_step {meta.step} was trained with {lost} "
            f"too, this config has {sorted(config.streams)}; to train on with other streams, use "
            "another --workdir with config.init_from"
        )
    for what, same in checkpoints.compare(assets, meta.assets).items():
        if not same:
            raise plugin.UserError(
                f"the {what} have changed since train_step {meta.step}: the same numbers would "
                "mean something else in the rest of the run. Restore them, or begin anew with "
                "another --workdir and config.init_from"
            )
    for name, mixture in assets.mixtures.items():
        before = meta.assets.mixtures[name] if name in meta.assets.mixtures else mixture
        if before["fingerprint"] != mixture["fingerprint"]:
            changed = f"config.streams.{name}.mixture has changed since train_step {meta.step}"
            tables = f"Before:\n{before['table']}\nNow:\n{mixture['table']}"
            if not config.accept_changed_data:
                raise plugin.UserError(
                    f"{changed}; a run that is resumed must see the same data. {tables}\n"
                    "Use another --workdir with config.init_from to begin anew on these data, "
                    "or config.accept_changed_data=True to go on with them"
                )
            drawn = meta.n[name] if name in meta.n else 0
            logging.warning("%s; it goes on with sample %d. %s", changed, drawn, tables)
