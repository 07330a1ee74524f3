"""A trained policy loaded from a checkpoint folder alone: raw observations in, raw actions out.

Training and acting call the same functions: the checkpoint's normalizer, its text tokenizer, the same
resize. Nothing here imports TensorFlow, and nothing is guessed: an instruction, a view or a reading
that does not fit what the checkpoint expects is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vla_jax import plugin, types
from vla_jax.codecs import normalizer as normalizer_lib
from vla_jax.codecs import text_tokenizer as text_tokenizer_lib
from vla_jax.models import build
from vla_jax.train import checkpoint, keys


class Policy:
    """A batch of `rows` robots (or simulators) driven by one network."""

    def __init__(self, loaded: checkpoint.Loaded, *, stream: str, dataset: str | None, rows: int):
        config = loaded.config
        if stream not in config.streams:
            raise plugin.UserError(plugin.unknown("policy stream", stream, config.streams))
        self.config, self.stream, self.rows = config, config.streams[stream], rows
        self.normalizer = normalizer_lib.Normalizer.from_json(loaded.normalizer)
        self.text_tokenizer = (
            text_tokenizer_lib.TextTokenizer(loaded.text_tokenizer) if loaded.text_tokenizer else None
        )
        self.spaces = loaded.action_spaces
        self.dataset = _choose("dataset key", dataset, self.normalizer.keys)
        self._dataset_index = self.normalizer.keys.index(self.dataset)
        proprio = {
            field.removeprefix("proprio/"): self.normalizer.constants(field)
            for field in self.normalizer.entries[self.dataset]
            if field.startswith("proprio/")
        }
        self.model = build.network(
            config,
            spaces=self.spaces,
            text_tokenizer=self.text_tokenizer,
            proprio_constants=proprio,
        )
        self._variables = jax.device_put(loaded.variables, jax.devices()[0])
        self._sample = jax.jit(functools.partial(self._apply, stream=stream))
        self._seed, self._queries = config.seed, 0
        self.reset()

    @classmethod
    def load(cls, folder: str, *, stream="robot", dataset=None, rows=1, step=None) -> Policy:
        """The policy of a run's folder; its EMA parameters where it has them.

        `dataset` names the normalization statistics; it may be omitted when there is one. Raises
        UserError for a missing folder, another format version, an unknown stream or dataset key.
        """
        return cls(checkpoint.load(folder, step=step), stream=stream, dataset=dataset, rows=rows)

    def _apply(self, variables, batch, row_keys, *, stream):
        return self.model.sample(variables, batch, stream, row_keys)

    def reset(self, row: int | None = None) -> None:
        """Forgets the history of one row, or of all."""
        if row is None:
            self._history: list[list[dict]] = [[] for _ in range(self.rows)]
        else:
            self._history[row] = []

    def observe(self, row: int, observation: dict) -> None:
        """Appends what row `row` senses at this control tick to its history of `window` ticks.

        ``{"images": {view: uint8 [h, w, 3]}, "proprio": {group: [P]}}``, readings in SI units.
        """
        history = self._history[row]
        history.append(self._standard(observation))
        del history[: -self.stream.window]

    def act(
        self, instructions: Sequence[str], *, masked_views: Sequence[str] = ()
    ) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
        """(actions [rows, C, A] in the dataset's units, the heads' answers {head: {name: [rows, …]}}).

        Every row must have been observed; `masked_views` hides cameras (the blind control).
        """
        silent = [row for row, history in enumerate(self._history) if not history]
        if len(instructions) != self.rows or silent:
            raise plugin.UserError(
                f"policy.act: got {len(instructions)} instructions for {self.rows} rows; rows never "
                f"observed: {silent}. Call observe(row, observation) first."
            )
        batch = self._batch(instructions, masked_views)
        row_keys = {
            name: keys.row_keys(self._seed, f"policy/{name}", batch.row_id)
            for name in self.stream.heads
        }
        self._queries += self.rows
        answers = jax.device_get(self._sample(self._variables, batch, row_keys))
        return self._actions(answers), answers

    def _standard(self, observation: dict) -> dict[str, Any]:
        """One observation, normalized, with the shapes the stream expects."""
        images = {}
        for view, size in self.stream.image_sizes.items():
            if view not in observation["images"]:
                raise plugin.UserError(plugin.unknown("observation.images", view, observation["images"]))
            image = np.asarray(observation["images"][view])
            if image.shape != (*size, 3) or image.dtype != np.uint8:
                raise plugin.UserError(
                    f"observation.images.{view}: got {image.dtype} {image.shape}, expected uint8 "
                    f"{(*size, 3)}, the size the checkpoint was trained with."
                )
            images[view] = image
        proprio = {}
        for field in self.normalizer.entries[self.dataset]:
            group = field.removeprefix("proprio/")
            if field == group:
                continue
            if group not in observation["proprio"]:
                raise plugin.UserError(
                    plugin.unknown("observation.proprio", group, observation["proprio"])
                )
            reading = np.asarray(observation["proprio"][group], np.float32)
            proprio[group] = self.normalizer.forward(self.dataset, field, reading).astype(np.float32)
        return {"images": images, "proprio": proprio}

    def _batch(self, instructions: Sequence[str], masked_views: Sequence[str]) -> types.Batch:
        window = self.stream.window
        real = np.zeros((self.rows, window), bool)
        padded = []
        for row, history in enumerate(self._history):
            real[row, window - len(history) :] = True
            padded.append([history[0]] * (window - len(history)) + history)

        def stack(kind: str, name: str) -> np.ndarray:
            return np.stack([np.stack([step[kind][name] for step in row]) for row in padded])

        first = padded[0][0]
        images = {view: stack("images", view) for view in first["images"]}
        encoded = [
            self.text_tokenizer.encode_padded(text, self.stream.max_tokens) for text in instructions
        ]
        ids = np.arange(self._queries, self._queries + self.rows, dtype=np.uint32)
        return types.Batch.make(
            observation=dict(
                images=images,
                image_masks={view: real & (view not in masked_views) for view in images},
                proprio={group: stack("proprio", group) for group in first["proprio"]},
                timestep_mask=real,
            ),
            task=dict(
                values={"language": np.stack([pieces for pieces, _ in encoded])},
                masks={"language": np.stack([mask for _, mask in encoded])},
            ),
            targets={},
            target_masks={},
            row_id=ids,
            action_space=np.zeros(self.rows, np.int32),
            dataset_key=np.full(self.rows, self._dataset_index, np.int32),
        )

    def _actions(self, answers: dict) -> np.ndarray:
        chunks = [answer["action"] for answer in answers.values() if "action" in answer]
        if len(chunks) != 1:
            raise plugin.UserError(
                f"policy: {len(chunks)} heads of stream answer with an action, expected one; "
                f"heads: {sorted(answers)}."
            )
        return self.normalizer.inverse(self.dataset, "action", np.asarray(chunks[0], np.float32))


def _choose(what: str, asked: str | None, known: Sequence[str]) -> str:
    if asked is None and len(known) == 1:
        return known[0]
    if asked not in known:
        raise plugin.UserError(plugin.unknown(f"policy {what}", str(asked), known))
    return asked
