"""The input contract of a policy: what it expects to be given and what it answers, as JSON says it.

Made of what a checkpoint stores and a policy applies; `vla import` and `vla finetune` write it as
contract.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vla_jax import config as config_lib
from vla_jax import plugin, types
from vla_jax.codecs import normalizer as normalizer_lib
from vla_jax.codecs import text_tokenizer as text_tokenizer_lib
from vla_jax.models import specs

FILE = "contract.json"
RESIZE = {
    "area": "by areas where it shrinks, by cubics where it grows",
    "tensorflow": "Lanczos of radius 3, antialiased, as tf.image.resize",
}


def of(
    config: config_lib.TrainConfig,
    stream: str,
    *,
    normalizer: normalizer_lib.Normalizer,
    spaces: Sequence[types.ActionSpace],
    text_tokenizer: text_tokenizer_lib.TextTokenizer | None,
) -> dict[str, Any]:
    """What a policy of the config's `stream` expects and answers.

    `spaces` is the checkpoint's table of action spaces. UserError for an unknown stream.
    """
    if stream not in config.streams:
        raise plugin.UserError(plugin.unknown("contract: stream", stream, config.streams))
    settings, model = config.streams[stream], config.model
    tokenizers = {name: model.tokenizers[name] for name in settings.groups}
    acting = {n: model.heads[n] for n in settings.heads if specs.acts(model.heads[n])}
    horizon = max(s.action_horizon for s in config.streams.values())
    return dict(
        images={view: list(size) for view, size in settings.image_sizes.items()},
        image_values="uint8 0..255, red green blue, or the bytes of a JPEG",
        resize=settings.resize,
        resize_filter=RESIZE[settings.resize],
        proprio=list(readings(config, stream)),
        window=settings.window,
        history="before the episode's beginning the first observation again, masked",
        language=_language(tokenizers.values(), text_tokenizer),
        language_tokens=settings.max_tokens,
        statistics={
            key: {field: _entry(entry) for field, entry in fields.items()}
            for key, fields in normalizer.entries.items()
        },
        heads={name: head["type"] for name, head in acting.items()},
        chunk={name: head.get("action_horizon") or horizon for name, head in acting.items()},
        chunk_begins="at the newest observation; one action per control tick",
        actions={space.name: _space(space) for space in spaces},
        action_values="in the units of the dataset whose statistics are chosen",
    )


def readings(config: config_lib.TrainConfig, stream: str) -> tuple[str, ...]:
    """The proprio groups that the stream's tokenizers and heads read."""
    settings, model = config.streams[stream], config.model
    found = [g for name in settings.groups for g in specs.readings(model.tokenizers[name])]
    found += [g for name in settings.heads for g in specs.head_readings(model.heads[name])]
    return tuple(dict.fromkeys(found))


def _language(tokenizers, words: text_tokenizer_lib.TextTokenizer | None) -> str | None:
    if words is None:
        spec = specs.embedded(tokenizers)
        if spec is None:
            return None
        size, by = spec["embedding_size"], spec.get("embedded_by")
        return (
            f"as an embedding of {size} numbers, language_embedding"
            + (f", by {by}" if by else "")
            + ("" if spec.get("masked", True) else "; the empty text's where there is none")
        )
    kind = "cut to fit, ended by EOS" if words.ends_texts else "refused where it is too long"
    return f"a sentence, {kind}; an empty one is no instruction"


def _entry(entry: normalizer_lib.Entry) -> dict[str, Any]:
    return dict(mode=entry.mode, clip=entry.clip, size=len(entry.active))


def _space(space: types.ActionSpace) -> dict[str, Any]:
    groups = {group.name: group.size for group in space.groups}
    return dict(size=space.size, groups=groups, control_hz=space.control_hz or None)
