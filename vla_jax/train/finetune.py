"""From a checkpoint's own config to that of its fine-tuning to a robot and its data.

    checkpoint                                 fine-tuning
    stream robot (else the first) ───────────▶ stream robot, and no other
    language, …                                kept
    view, proprio group  the body has          kept, loaded
                         the body lacks        dropped
                         new                   a tokenizer like the first view's, fresh
    action head of the same space              kept, loaded, with the heads that it reads
                of another space or horizon    a head like it, fresh; its readout is kept, loaded
    what no gradient ever reaches (a T5)       loaded and frozen
    rules                                      rows added where a new group would see, or be seen,
                                               otherwise than the one it is modelled on

`derive` is pure, but that it asks what format the data have; `prepare` opens the checkpoint and
works out which parameters begin fresh.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence

import jax

from vla_jax import config as config_lib
from vla_jax import plugin, storage, trees, types
from vla_jax.codecs import normalizer as normalizer_lib
from vla_jax.codecs import text_tokenizer as text_tokenizer_lib
from vla_jax.data import recordings, statistics_file
from vla_jax.models import build, pretrained, specs, synthetic
from vla_jax.train import checkpoint, organs

STREAM, MEMBER = "robot", "demos"
MODES = ("full", "head_only")
STATS = ("checkpoint", "recompute")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks for; None = as in the checkpoint, or the only one there is.

    Attributes:
      checkpoint, data: folders.
      embodiment: a Python file with EMBODIMENT, or a name of embodiments/.
      stats: "checkpoint" or "recompute": whose normalization statistics; or a file of
        `vla data stats`, which is refused unless it was measured on these data.
      source: the file of data/sources/ that reads the data; None = they are asked which.
      standardizer: TYPE, TYPE:ROW, or FILE.py:ROW.
      mode: "full", or "head_only": what was loaded stays as it is, but for the action head.
      views: those of the body to use; None = all.
      action_space: of the body; data recorded in another one are converted.
      episodes: only the first so many training episodes.
      holdout: share of the episodes kept for validation; 0 = none.
    """

    checkpoint: str
    data: str
    embodiment: str
    stats: str
    source: str | None = None
    standardizer: str = "native"
    mode: str = "full"
    steps: int = 1000
    batch_size: int = 32
    lr: float = 3e-4
    action_head: str | None = None
    action_space: str | None = None
    action_horizon: int | None = None
    window: int | None = None
    views: tuple[str, ...] | None = None
    dataset_key: str | None = None
    episodes: int | None = None
    holdout: float = 0.1
    language: str = "required"
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A fine-tuning ready for `assemble`, and what becomes of every parameter."""

    config: config_lib.TrainConfig
    report: pretrained.Report


def prepare(request: Request, overrides: Sequence[str] = ()) -> Prepared:
    """The config of a fine-tuning, `overrides` (``--config.a.b=c``) laid over it, and its report.

    Raises UserError for a missing checkpoint or embodiment, for what `derive` refuses, and for a
    parameter that the checkpoint lacks, or has in another shape, without its organ being new.
    """
    before = checkpoint.look(request.checkpoint)
    name, body = find_body(request.embodiment)
    config = derive(before.meta, body, dataclasses.replace(request, embodiment=name))
    tree = config_lib.override(dataclasses.asdict(config), overrides)
    return complete(config_lib.parse(config_lib.TrainConfig, tree), before, request.mode)


def find_body(embodiment: str) -> tuple[str, types.Embodiment]:
    """(name or absolute path of the file, the body); UserError for one that is not there."""
    if embodiment.endswith(".py"):
        embodiment = os.path.abspath(embodiment)
        body = plugin.load_attribute(embodiment, "EMBODIMENT")
    else:
        body = plugin.module("embodiments", embodiment).EMBODIMENT
    if not isinstance(body, types.Embodiment):
        raise plugin.UserError(
            f"{embodiment}: EMBODIMENT is a {type(body).__name__}, expected a types.Embodiment; "
            "see embodiments/sawyer_cards.py"
        )
    return embodiment, body


def derive(
    meta: checkpoint.Meta, body: types.Embodiment, request: Request
) -> config_lib.TrainConfig:
    """The config of the fine-tuning that `request` asks for; `init_from.fresh` holds new organs.

    Raises UserError for a choice that does not fit the body or the checkpoint.
    """
    _check_choices(request)
    space = _action_space(meta, body, request)
    key = _dataset_key(meta, body, space, request)
    draft = organs.Organs(meta.config, meta.assets.action_spaces, STREAM)
    draft.add_views(_views(body, request))
    draft.add_proprio(body.proprio)
    draft.add_action(space, body.proprio, request.action_head, request.action_horizon)
    member = {MEMBER: dict(source=_source(request, key, body, space) | draft.targets, weight=1.0)}
    steps, model = request.steps, draft.model()
    return config_lib.TrainConfig(
        steps=steps,
        seed=request.seed,
        embodiments=(request.embodiment,),
        model=model,
        streams={
            STREAM: draft.stream(
                batch_size=request.batch_size,
                window=request.window,
                action_horizon=request.action_horizon,
                mixture=member,
                validation=member if request.holdout else {},
            )
        },
        normalizer=dataclasses.replace(
            meta.config.normalizer,
            stats=_statistics(request),
            modes=meta.config.normalizer.modes
            if draft.kept_action
            else config_lib.NormalizerConfig().modes,
        ),
        init_from=config_lib.InitFromConfig(
            checkpoint=storage.absolute(request.checkpoint), fresh=tuple(draft.fresh)
        ),
        optimizer=dataclasses.replace(
            meta.config.optimizer,
            lr=request.lr,
            warmup=min(meta.config.optimizer.warmup, steps // 10),
            groups=config_lib.OptimizerConfig().groups,
            accumulation=1,
        ),
        freeze=tuple(
            row for name, spec in model.tokenizers.items() for row in specs.frozen(name, spec)
        ),
        sharding=meta.config.sharding,
        checkpoint=config_lib.CheckpointConfig(every=max(1, steps // 2)),
        validation=config_lib.ValidationConfig(
            every=max(1, steps // 4) if request.holdout else None, batches=4
        ),
        workers=meta.config.workers,
        writers=meta.config.writers,
        log_every=max(1, min(meta.config.log_every, steps // 10)),
    )


def complete(config: config_lib.TrainConfig, before: checkpoint.Stored, mode: str) -> Prepared:
    """`config` with `init_from.fresh` and `freeze` worked out from the parameters themselves.

    `config.init_from.fresh` names the new organs. A window of another length begins its position
    tables anew as well. UserError for any other parameter that cannot be loaded.
    """
    shapes, have = _shapes(config, before), before.shapes()
    paths = trees.paths(shapes)
    lacking = pretrained.fresh_paths(have, shapes)
    fresh = [p for p in config.init_from.fresh if any(re.fullmatch(p, path) for path in paths)]
    window = max(stream.window for stream in before.config.streams.values())
    if config.streams[STREAM].window != window:
        fresh += [re.escape(p) for p in lacking if p.startswith("params/positions_")]
    _, report = pretrained.match(shapes, have, fresh=fresh)
    if mode == "head_only":
        trained = (*fresh, *_action_organs(config, paths))
        rows = tuple((pattern, False) for pattern in dict.fromkeys(trained))
        config = dataclasses.replace(config, freeze=(*config.freeze, *rows, (".*", True)))
    init_from = dataclasses.replace(config.init_from, fresh=tuple(fresh))
    return Prepared(config=dataclasses.replace(config, init_from=init_from), report=report)


def _shapes(config: config_lib.TrainConfig, before: checkpoint.Stored) -> Mapping:
    """The shapes of the network's parameters; nothing is computed."""
    stored = before.text_tokenizer
    tokenizer = text_tokenizer_lib.TextTokenizer(stored) if stored else None
    bodies = build.embodiments(config)
    network = build.network(
        config,
        spaces=build.action_spaces(bodies),
        text_tokenizer=tokenizer,
        proprio_constants=build.identity_constants(bodies),
    )
    examples = synthetic.batches(config, tokenizer.vocabulary_size if tokenizer else 0)
    return jax.eval_shape(lambda: dict(network.init(jax.random.key(0), examples)))


def _action_organs(config: config_lib.TrainConfig, paths: Sequence[str]) -> list[str]:
    stream = config.streams[STREAM]
    heads = [name for name in stream.heads if specs.acts(config.model.heads[name])]
    patterns = [organs.pattern("heads", name) for name in heads]
    for name in heads:
        readouts = specs.readouts(config.model.heads[name])
        patterns += [organs.pattern("positions", f"readout_{readout}") for readout in readouts]
    return [p for p in patterns if any(re.fullmatch(p, path) for path in paths)]


# ------------------------------------------------------------------------------- what is asked for


def _check_choices(request: Request) -> None:
    """UserError for unknown words, and for an action head (a plug-in) that does not act."""
    choices = [("mode", MODES)]
    if not statistics_file.exists(request.stats):
        choices.append(("stats", (*STATS, "FILE of `vla data stats`")))
    kind = request.action_head
    if kind is not None and not ("." in kind and specs.acts(dict(type=kind))):
        choices.append(("action_head", specs.acting()))
    for field, known in choices:
        value = getattr(request, field)
        if value not in known:
            raise plugin.UserError(plugin.unknown(f"finetune: {field}", str(value), known))


def _views(body: types.Embodiment, request: Request) -> tuple[str, ...]:
    for view in request.views or ():
        if view not in body.views:
            raise plugin.UserError(
                plugin.unknown(f"finetune: view of {body.name}", view, body.views)
            )
    return body.views if request.views is None else request.views


def _action_space(meta, body: types.Embodiment, request: Request) -> types.ActionSpace:
    spaces = {space.name: space for space in body.action_spaces}
    name = request.action_space
    if name is None and len(spaces) == 1:
        (name,) = spaces
    if name not in spaces:
        raise plugin.UserError(
            plugin.unknown(f"finetune: action space of {body.name}", str(name), spaces)
        )
    for known in meta.assets.action_spaces:
        if known.name == name and known != spaces[name]:
            raise plugin.UserError(
                f"finetune: the action space {name!r} of {body.name} is not the one that the "
                f"checkpoint knows by this name ({known.size} numbers at {known.control_hz} Hz, "
                f"{spaces[name].size} at {spaces[name].control_hz} Hz here); rename it"
            )
    return spaces[name]


def _statistics(request: Request) -> str:
    """As config.normalizer.stats says it, from wherever the run goes on."""
    known = request.stats in STATS or "://" in request.stats
    return request.stats if known else os.path.abspath(request.stats)


def _source(request: Request, dataset_key: str | None, body, space: types.ActionSpace) -> dict:
    """The spec of the data; of a body with several action spaces they may be in another one."""
    converted = dict(convert=space.name) if len(body.action_spaces) > 1 else {}
    return converted | dict(
        type=request.source or recordings.source_type(request.data),
        path=storage.absolute(request.data),
        standardizer=recordings.standardizer(request.standardizer),
        dataset_key=dataset_key,
        holdout=request.holdout,
        episodes=request.episodes,
        language=request.language,
    )


def _dataset_key(meta, body, space: types.ActionSpace, request: Request) -> str | None:
    """The row of the normalizer; with the checkpoint's statistics it must be there, and fit."""
    if request.stats == "recompute":
        return request.dataset_key
    if request.stats not in STATS:
        table, key = statistics_file.read(request.stats)[0], request.dataset_key
        if key is not None and key not in table:
            raise plugin.UserError(plugin.unknown(f"{request.stats}: dataset key", key, table))
        return next(iter(table)) if key is None and len(table) == 1 else key
    where = "finetune: stats='checkpoint'"
    stored = meta.assets.normalizer
    table = normalizer_lib.Normalizer.from_json(stored).entries if stored else {}
    key = request.dataset_key
    if key is None and len(table) == 1:
        (key,) = table
    if key not in table:
        raise plugin.UserError(
            plugin.unknown(f"{where}: dataset key", str(key), table)
            + " Name one with --dataset-key, or use 'recompute'."
        )
    sizes = {field: len(entry.active) for field, entry in table[key].items()}
    wanted = {f"proprio/{group.name}": group.size for group in body.proprio}
    meant = any(organs.alike(known, space) for known in meta.assets.action_spaces)
    if not meant or any(sizes.get(field) != size for field, size in wanted.items()):
        known = [known.name for known in meta.assets.action_spaces]
        raise plugin.UserError(
            f"{where}: the statistics of {key!r} are of action spaces {known} and fields {sizes}; "
            f"{body.name} has {space.name!r} and {wanted}; use 'recompute'"
        )
    return key
