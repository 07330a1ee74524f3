"""From a config to all that the loop takes: data, statistics, network, objectives, a start."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import sys
from collections.abc import Callable, Mapping, Sequence

from vla_jax import config as config_lib
from vla_jax import plugin, storage, trees, types
from vla_jax.codecs import normalizer as normalizer_lib
from vla_jax.codecs import text_tokenizer as text_tokenizer_lib
from vla_jax.data import engine, mixture, statistics, statistics_file
from vla_jax.models import build, pretrained, synthetic
from vla_jax.parallel import processes
from vla_jax.train import accounting, checkpoint, hooks, loop
from vla_jax.train import state as states


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assembly:
    """A run, ready to go: `loop.run` takes its parts."""

    config: config_lib.TrainConfig
    network: build.Network
    objectives: dict[str, dict[str, tuple]]
    mixtures: dict[str, mixture.Mixture]
    held_out: dict[str, mixture.Mixture]
    normalizer: normalizer_lib.Normalizer
    statistics_from: str  # where the normalizer's numbers come from, for people
    text_tokenizer: text_tokenizer_lib.TextTokenizer | None
    spaces: tuple[types.ActionSpace, ...]
    start: checkpoint.Stored | None  # what init_from names; in a resumed run, its own checkpoint

    @property
    def vocabulary_size(self) -> int:
        """V of the text tokenizer, 0 without one."""
        return self.text_tokenizer.vocabulary_size if self.text_tokenizer else 0

    def tables(self) -> str:
        """The mixtures as text: members, sizes, weights, epochs to come; then the statistics."""
        parts = [
            mix.table(self.config.steps * self.config.streams[name].batch_size)
            for name, mix in self.mixtures.items()
        ]
        if self.normalizer.entries:
            report = statistics.report(self.normalizer)
            parts.append(f"statistics {self.statistics_from}\n{report}")
        return "\n\n".join(parts)

    def assets(self) -> checkpoint.Assets:
        """What a checkpoint stores beside the parameters."""
        return checkpoint.Assets(
            normalizer=self.normalizer.to_json(),
            text_tokenizer=self.text_tokenizer.bytes if self.text_tokenizer else None,
            action_spaces=self.spaces,
            mixtures={
                name: {"fingerprint": mix.fingerprint, "table": mix.table()}
                for name, mix in self.mixtures.items()
            },
        )


def assemble(config: config_lib.TrainConfig, workdir: str | None = None) -> Assembly:
    """Everything of a run but its parameters; opens the data, computes statistics if asked to.

    A run that goes on in `workdir` knows all that it took from `init_from`, which may be gone.
    Raises UserError for whatever in the config does not fit together, does not exist or was left
    open (`config.check_filled`).
    """
    config_lib.check_filled("config", config)
    start = None
    if config.init_from and config.init_from.checkpoint:
        resumed = workdir is not None and checkpoint.resumable(workdir)
        start = checkpoint.look(workdir if resumed else config.init_from.checkpoint)
    tokenizer = _text_tokenizer(config, start)
    bodies = build.embodiments(config)
    spaces = build.action_spaces(bodies)
    contexts = {
        name: source_context(config, name, bodies, spaces, tokenizer) for name in config.streams
    }
    mixtures = {
        name: mixture.Mixture.make(stream.mixture, contexts[name], seed=config.seed)
        for name, stream in config.streams.items()
    }
    held_out = {
        name: mixture.Mixture.make(
            stream.validation, dataclasses.replace(contexts[name], train=False), seed=config.seed
        )
        for name, stream in config.streams.items()
        if stream.validation
    }
    normalizer, statistics_from = _normalizer(config, start, mixtures.values())
    network = build.network(
        config,
        spaces=spaces,
        text_tokenizer=tokenizer,
        proprio_constants=build.constants(normalizer),
    )
    context = build.make_context(config, spaces, tokenizer, {})
    objectives = build.objectives(config, context)
    network.check(objectives)
    return Assembly(
        config=config,
        network=network,
        objectives=objectives,
        mixtures={name: mix.with_normalizer(normalizer) for name, mix in mixtures.items()},
        held_out={name: mix.with_normalizer(normalizer) for name, mix in held_out.items()},
        normalizer=normalizer,
        statistics_from=statistics_from,
        text_tokenizer=tokenizer,
        spaces=spaces,
        start=start,
    )


def train(
    assembly: Assembly,
    workdir: str,
    hooks_: Sequence[hooks.Hook] = (),
    ready: Callable[[], None] = lambda: None,
) -> states.TrainState:
    """The state after training; resumes where `workdir` has a checkpoint. `ready`: see loop.run."""
    config = assembly.config
    opener = functools.partial(_open, workers=config.workers)
    return loop.run(
        config,
        assembly.network,
        {name: functools.partial(opener, config, mix) for name, mix in assembly.mixtures.items()},
        objectives=assembly.objectives,
        examples=synthetic.examples(config, assembly.vocabulary_size),
        workdir=workdir,
        assets=assembly.assets(),
        validation={
            name: functools.partial(opener, config, mix) for name, mix in assembly.held_out.items()
        },
        pretrained=functools.partial(_values, assembly) if config.init_from else None,
        hooks=hooks_,
        ready=ready,
        work=accounting.work(config, assembly.network, assembly.vocabulary_size),
    )


def source_context(
    config: config_lib.TrainConfig,
    stream: str,
    bodies: Sequence[types.Embodiment],
    spaces: Sequence[types.ActionSpace],
    tokenizer: text_tokenizer_lib.TextTokenizer | None,
) -> types.SourceContext:
    """What the stream's sources are told; `names` is the table of its head that has one."""
    settings = config.streams[stream]
    heads = [config.model.heads[name] for name in settings.heads if name in config.model.heads]
    tables = [head["names"] for head in heads if "names" in head]
    return types.SourceContext(
        name=stream,
        stream=stream,
        window=settings.window,
        action_horizon=settings.action_horizon,
        action_size=build.action_size(tuple(spaces)),
        image_sizes=settings.image_sizes,
        resize=settings.resize,
        max_tokens=settings.max_tokens,
        text_tokenizer=tokenizer,
        embodiments=tuple(bodies),
        action_spaces=tuple(spaces),
        names=tuple(tables[0]) if tables else (),
    )


def _open(config, mix: mixture.Mixture, rows, start_n: int, *, workers: int) -> engine.Stream:
    size = config.streams[mix.stream].batch_size
    return engine.Stream(mix, size, rows, start_n, workers=workers)


def _values(assembly: Assembly, shapes: Mapping) -> Mapping:
    """The values that `init_from` names for the parameters `shapes`; the rest stay shapes.

    A checkpoint's go from its files to their place on the mesh: no host reads more than its part.
    """
    settings, loaded = assembly.config.init_from, shapes
    if settings.checkpoint:
        fresh = [*settings.fresh, *(pretrained.encoder(n) + ".*" for n in settings.encoders)]
        wanted = dict(trees.items(shapes))
        taken, report = pretrained.match(
            shapes, assembly.start.shapes(), fresh=fresh, rename=settings.rename
        )
        found = assembly.start.place({path: (taken[path], wanted[path]) for path in taken})
        loaded = trees.map_with_path(lambda path, leaf: found.pop(path, leaf), shapes)
        if processes.first():
            print(f"from {settings.checkpoint}\n{report}", file=sys.stderr, flush=True)
    tokenizers = assembly.config.model.tokenizers
    for name, folder in settings.encoders.items():
        loaded = pretrained.load_encoder(loaded, name, tokenizers.get(name, {}), folder)
    return loaded


def _text_tokenizer(config, start) -> text_tokenizer_lib.TextTokenizer | None:
    stored = start.text_tokenizer if start else None
    if config.text_tokenizer is None:
        return text_tokenizer_lib.TextTokenizer(stored) if stored else None
    if not storage.is_file(config.text_tokenizer):
        raise plugin.UserError(
            f"config.text_tokenizer: {config.text_tokenizer} does not exist; make it with "
            f"`vla data text-tokenizer --config … --out {config.text_tokenizer}`."
        )
    loaded = text_tokenizer_lib.TextTokenizer.load(config.text_tokenizer, config.text_pieces)
    if stored and loaded != text_tokenizer_lib.TextTokenizer(stored):
        raise plugin.UserError(
            f"config.text_tokenizer: {config.text_tokenizer} differs from the one in "
            f"the checkpoint {start.folder}, whose piece embeddings would mean other pieces; leave "
            "config.text_tokenizer out to use the checkpoint's."
        )
    return loaded


def _normalizer(config, start, mixtures) -> tuple[normalizer_lib.Normalizer, str]:
    """(the normalizer, where its numbers come from)."""
    if config.normalizer.stats == "checkpoint":
        if start is None or not start.normalizer:
            raise plugin.UserError(
                "config.normalizer.stats='checkpoint' needs config.init_from with a checkpoint "
                "that has statistics; use 'recompute'."
            )
        stored = normalizer_lib.Normalizer.from_json(start.normalizer)
        keys = [s.dataset_key for mix in mixtures for s in mix.sources.values() if _measured(s)]
        # Only this run's robots: readings are padded to the largest in the table.
        kept = stored.table(dict.fromkeys(keys)) if keys else stored
        return kept, f"of the checkpoint {start.folder}"
    tables = statistics.gather(s for mix in mixtures for s in mix.sources.values())
    stats = config.normalizer.stats
    if stats == "recompute":
        found, said = statistics.measure(tables), "computed from the training episodes"
    else:
        files = _files(stats)
        found = statistics_file.fitting(files, tables)
        said = ", ".join(f"of {f}, content {statistics_file.read(f)[1][:16]}" for f in files)
    made = statistics.normalizer(
        tables, found, mode=modes(config, tables), clip=config.normalizer.clip
    )
    return made, said


def modes(config, tables: Mapping) -> dict[str, str]:
    """Field -> mode, by the rows of config.normalizer.modes; UserError for a field without a row.

    `tables` are those of statistics.gather.
    """
    fields = {field for data in tables.values() for part in data.values() for field in part}
    return {field: _mode(config.normalizer.modes, field) for field in sorted(fields)}


def _files(stats: str | Sequence[str]) -> tuple[str, ...]:
    files = (stats,) if isinstance(stats, str) else tuple(stats)
    for file in files:
        if not statistics_file.exists(file):
            raise plugin.UserError(
                f"config.normalizer.stats: no file {file!r}; expected 'recompute', 'checkpoint', "
                "or files that `vla data stats --config … --out FILE` made"
            )
    return files


def _measured(source) -> bool:
    return hasattr(source, "statistics_columns")


def _mode(rows: Sequence[tuple[str, str]], field: str) -> str:
    for pattern, mode in rows:
        if fnmatch.fnmatchcase(field, pattern):
            return mode
    raise plugin.UserError(
        f"config.normalizer.modes: no row matches {field!r}; end the table with ('*', 'zscore')."
    )
