"""What a config may say: frozen dataclasses with every default, once. `config.py` parses into them.

Plug-in specs (``dict(type="flow", …)``) stay plain dicts; `plugin.build` checks them against the
plug-in's own signature.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from vla_jax import plugin

Spec = dict[str, Any]  # a plug-in: its `type` and arguments
Row = tuple[str, Any]  # (regex over parameter paths, value): the first row that matches decides
Options = dict[str, bool | int | float | str]  # XLA's, by name
PerLayer = float | tuple[float, ...]  # one value, or one per layer of a stacked parameter
Schedule = float | tuple[tuple[float, float], ...]  # a value, or (n, value) points joined by lines


def _section():
    return dataclasses.dataclass(frozen=True, kw_only=True)


def _empty():
    return dataclasses.field(default_factory=dict)


@_section()
class LegacyConfig:
    """What imported Octo checkpoints need for their numbers; new networks leave it alone.

    shifted:   rules take a group's first token for one of the group before it (Octo 1.0)
    unseeing:  what a query that may see nothing gets, "zeros" or the "mean" of all values (flax)
    readouts:  True: readouts of steps before the episode's beginning count as real
    oldest:    True: a window shorter than the position tables takes their first rows, not the last
    """

    shifted: bool = False
    unseeing: Literal["zeros", "mean"] = "zeros"
    readouts: bool = False
    oldest: bool = False


@_section()
class ModelConfig:
    """The network: one trunk, and tables of named organs from which each stream picks."""

    trunk: Spec
    shared: dict[str, Spec] = _empty()  # modules that several organs use: text_embedding, grounding
    tokenizers: dict[str, Spec] = _empty()
    readouts: dict[str, int] = _empty()  # name -> tokens
    heads: dict[str, Spec] = _empty()
    rules: tuple[tuple[str, str, str], ...] = ()  # (query groups, key groups, rule)
    dtype: str = "float32"  # of computation; parameters, softmax and losses stay float32
    max_window: int = 0  # steps of the position tables; 0: the longest window of a stream
    legacy: LegacyConfig = dataclasses.field(default_factory=LegacyConfig)


@_section()
class StreamConfig:
    """One kind of batch in a step: its size, token layout, heads, objectives and mixture."""

    batch_size: int
    groups: tuple[str, ...]  # tokenizers in token order
    window: int = 1
    action_horizon: int = 1
    conditioning: dict[str, tuple[str, ...]] = _empty()  # group -> groups that it reads
    readouts: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    objectives: dict[str, Spec] = _empty()  # each with an optional weight
    mixture: dict[str, Spec] = _empty()  # member -> dict(source=spec, weight=…)
    validation: dict[str, Spec] = _empty()  # the held-out members; empty = not validated
    max_tokens: int = 16
    image_sizes: dict[str, tuple[int, int]] = _empty()  # view -> (height, width)
    resize: Literal["area", "tensorflow"] = "area"  # how pictures come to these sizes (images.py)


@_section()
class OptimizerConfig:
    """Which updates, on which schedule; see train/optimizer.py.

    Rows of `groups` multiply `lr` and `weight_decay` per parameter, or per layer of a stacked one.
    """

    type: Literal["adamw", "adafactor", "muon"] = "adamw"
    lr: float = 3e-4
    schedule: Literal["cosine", "rsqrt", "wsd", "piecewise", "constant"] = "cosine"
    warmup: int = 0  # train_steps of linear warm-up
    final: float = 0.0  # cosine, wsd: fraction of lr at the last train_step
    decay: int = 0  # wsd: the last train_steps, in which lr falls
    points: tuple[tuple[float, float], ...] = ()  # piecewise: (train_step, fraction of lr)
    timescale: int = 10_000  # rsqrt: lr * sqrt(timescale / (train_step - warmup + timescale))
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip: float | None = 1.0  # global norm of the gradient
    # None: a loss that is not finite ends the run. A number: an update is left out and counted if
    # its loss or gradient is not finite, or the gradient's norm is over so many times the average
    # norm (0: any norm), or the loss so many standard deviations over its average (0: any loss).
    skip: float | None = None
    skip_loss: float = 6.0
    groups: tuple[Row, ...] = (
        (r".*/(bias|scale)", {"weight_decay": 0.0}),
        (r".*", {}),
    )  # (regex, {"lr": PerLayer, "weight_decay": PerLayer}): factors, default 1
    momentum: float = 0.95  # muon: of the matrices; b1, b2 and eps are those of the rest
    muon: tuple[Row, ...] = (
        (r"params/trunk/layers/.*/(query|key|value)/kernel", {"inputs": (1,), "outputs": (2, 3)}),
        (r"params/trunk/layers/.*/mlp/.*/kernel", {"inputs": (1,), "outputs": (2,)}),
        (r"params/trunk/layers/.*/out/kernel", {"inputs": (1, 2), "outputs": (3,)}),
        (r".*", None),
    )  # (regex, the axes of a matrix, or None: AdamW); other axes, like the layers', count them
    ema: float | None = None  # decay of the moving average of the trained parameters
    accumulation: int = 1  # microbatches of one train_step


@_section()
class MeshConfig:
    """Sizes of the mesh axes; -1 (one axis) is what the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1


@_section()
class ShardingConfig:
    """First-match table from parameter paths to axes, see parallel/sharding.py."""

    rules: tuple[Row, ...] = (
        # The trunk's widths over tensor: heads and the MLP's hidden units; stacked [layer, …].
        (
            r"params/trunk/.*/(query|key|value|hidden_0)/kernel",
            {"axes": (None, "fsdp", "tensor"), "or_replicate": True},
        ),
        (
            r"params/trunk/.*/mlp/out/kernel",
            {"axes": (None, "tensor", "fsdp"), "or_replicate": True},
        ),
        (
            r"params/trunk/.*/out/kernel",
            {"axes": (None, "tensor", None, "fsdp"), "or_replicate": True},
        ),
        (r".*", "fsdp"),
    )
    small: int = 2**16  # parameters of fewer numbers are replicated


@_section()
class CheckpointConfig:
    """When to save: resume points, and apart from them the best by a metric."""

    every: int = 1000  # train_steps; the last one is always saved
    keep: int = 2  # the newest
    keep_every: int | None = None  # and those of train_steps that this divides, for good
    best_metric: str | None = None  # e.g. "validation/robot/action"
    best_mode: Literal["min", "max"] = "min"
    best_keep: int = 1
    checksums: bool = False  # writes checksums.json beside each save; `vla ckpt verify` reads it


@_section()
class CompilerConfig:
    """XLA's options {name: value} on each platform, for the programs of this run alone.

    The platform is that of the mesh's devices. What a process must find when it starts (libtpu's
    flags, memory, malloc) is not said here: launch/flags.py, docs/pods.md.
    """

    advice = "XLA's options stand below the platform that they are for: config.compiler.cpu.OPTION"
    cpu: Options = _empty()
    gpu: Options = _empty()
    tpu: Options = _empty()

    def __post_init__(self):
        for platform, options in vars(self).items():
            for other in vars(self):
                strays = [name for name in options if name.startswith(f"xla_{other}_")]
                if strays and other != platform:
                    raise plugin.UserError(
                        f"config.compiler.{platform}: got {strays[0]!r}, an option of {other}; "
                        f"say config.compiler.{other}.{strays[0]}"
                    )


@_section()
class ValidationConfig:
    """Held-out batches per stream, the same ones each time."""

    every: int | None = None  # train_steps; None = never
    batches: int = 8


@_section()
class NormalizerConfig:
    """How numbers are scaled: field patterns ("action", "proprio/*") -> mode, first match wins."""

    stats: str | tuple[str, ...] = "recompute"  # "checkpoint", or files of `vla data stats`
    modes: tuple[tuple[str, str], ...] = (("action", "q01_q99"), ("*", "zscore"))
    clip: float | None = None


@_section()
class InitFromConfig:
    """Others' parameters to begin with: a run's (models/pretrained.py), pretrained encoders'."""

    checkpoint: str | None = None
    fresh: tuple[str, ...] = ()  # regexes of paths that start anew
    rename: tuple[tuple[str, str], ...] = ()  # (regex, replacement): new path -> checkpoint's path
    encoders: dict[str, str] = dataclasses.field(default_factory=dict)  # tokenizer -> HF's folder

    def __post_init__(self):
        if not self.checkpoint and (self.fresh or self.rename or not self.encoders):
            raise plugin.UserError("config.init_from.checkpoint is missing: name a run's folder")


@_section()
class TrainConfig:
    """Everything a run is, in the order in which a reader asks."""

    steps: int
    model: ModelConfig
    streams: dict[str, StreamConfig]
    seed: int = 0
    embodiments: tuple[str, ...] = ()
    text_tokenizer: str | None = None  # path of a SentencePiece model or a T5's tokenizer.json
    text_pieces: int | None = None  # how many it has: plans are exact before its file is there
    normalizer: NormalizerConfig = dataclasses.field(default_factory=NormalizerConfig)
    init_from: InitFromConfig | None = None
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    freeze: tuple[tuple[str, bool], ...] = ()  # (regex, frozen?) over parameter paths
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"  # how frozen parameters are stored
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    sharding: ShardingConfig = dataclasses.field(default_factory=ShardingConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)
    compiler: CompilerConfig = dataclasses.field(default_factory=CompilerConfig)
    workers: int = 0  # data processes per stream; 0 = in this one
    patience: float = 900.0  # seconds until a process that lives but does not move on ends the run
    accept_changed_data: bool = False  # a resumed run goes on at its n with another mixture
    writers: tuple[str, ...] = ("jsonl", "tensorboard")
    log_every: int = 50
