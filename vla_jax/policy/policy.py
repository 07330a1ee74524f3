"""A trained policy loaded from a checkpoint folder alone: raw observations in, raw actions out.

Training and acting call the same functions: the checkpoint's normalizer, its text tokenizer, the
same padding of the window. Nothing here imports TensorFlow, and nothing is guessed: an instruction,
a view or a reading that does not fit what the checkpoint expects is refused.

    row r ── dataset key ──▶ statistics of its numbers
          ── action space ─▶ which head answers for it, how many numbers an action has
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vla_jax import plugin, types
from vla_jax.codecs import normalizer as normalizer_lib
from vla_jax.codecs import text_tokenizer as text_tokenizer_lib
from vla_jax.data import images as pixels
from vla_jax.models import build, contract, specs
from vla_jax.train import checkpoint, keys, program

PROPRIO = build.PROPRIO
EMBEDDINGS = 256  # instructions whose embedding a policy keeps


class Policy:
    """A batch of `rows` robots (or simulators) driven by one network.

    Args:
      loaded: the checkpoint.
      stream: which of its streams acts.
      dataset: dataset key, for all rows or one per row; None = the only one there is.
      action_space: name, for all rows or one per row; None = the only one that has as many numbers
        as the dataset's actions.
      rows: B.

    Raises UserError for an unknown stream, dataset key or action space, for a choice that is not
    made where there are several, and for a checkpoint that has seen no robot.
    """

    def __init__(
        self,
        loaded: checkpoint.Loaded,
        *,
        stream: str = "robot",
        dataset: str | Sequence[str] | None = None,
        action_space: str | Sequence[str] | None = None,
        rows: int = 1,
    ):
        config = loaded.config
        if stream not in config.streams:
            raise plugin.UserError(plugin.unknown("policy stream", stream, config.streams))
        self.config, self.stream, self.rows = config, config.streams[stream], rows
        self._stream_name = stream
        self.normalizer = normalizer_lib.Normalizer.from_json(loaded.normalizer)
        stored = loaded.text_tokenizer
        self.text_tokenizer = text_tokenizer_lib.TextTokenizer(stored) if stored else None
        self.spaces = loaded.action_spaces
        self.datasets = tuple(
            _dataset(self.normalizer, name) for name in _per_row("dataset", dataset, rows)
        )
        asked = _per_row("action_space", action_space, rows)
        self.row_spaces = tuple(
            _space(self.normalizer, self.spaces, key, name)
            for key, name in zip(self.datasets, asked, strict=True)
        )
        self.proprio_sizes = _proprio_sizes(config, self.stream, self.normalizer)
        self._read = contract.readings(config, stream)  # what need not be given, if nobody reads it
        self.model = build.network(
            config,
            spaces=self.spaces,
            text_tokenizer=self.text_tokenizer,
            proprio_constants=build.constants(self.normalizer),
        ).plain()  # a robot's computer is another than the one it was trained on
        device = jax.local_devices()[0]
        self._variables = jax.device_put(loaded.variables, device)
        self._sample = jax.jit(
            functools.partial(self._apply, stream=stream),
            compiler_options=program.options(
                config, jax.sharding.SingleDeviceSharding(device), known_only=True
            ),
        )
        self._encoder = self.model.text_encoder(stream)
        self._embed = functools.lru_cache(EMBEDDINGS)(self._embed)
        self._seed = config.seed
        self.reset()

    @classmethod
    def load(cls, folder: str, *, step: int | None = None, **arguments) -> Policy:
        """The policy of a run's folder (`arguments` as of the class); its EMA parameters if any.

        Raises UserError for a missing folder, another format version, and what the class raises.
        """
        return cls(checkpoint.load(folder, step=step), **arguments)

    @property
    def dataset(self) -> str:
        """The dataset key of row 0."""
        return self.datasets[0]

    @property
    def contract(self) -> dict[str, Any]:
        """What it expects and answers, as JSON says it: models/contract.py."""
        return contract.of(
            self.config,
            self._stream_name,
            normalizer=self.normalizer,
            spaces=self.spaces,
            text_tokenizer=self.text_tokenizer,
        )

    def _apply(self, variables, batch, *, stream):
        # Keys are made inside the jitted function: op by op they cost more than the network.
        row_keys = {
            name: keys.row_keys(self._seed, f"policy/{name}", batch.row_id)
            for name in self.stream.heads
        }
        return self.model.sample(variables, batch, stream, row_keys)

    def reset(self, row: int | None = None, *, queries: int = 0) -> None:
        """Forgets the history of one row; or of all, and begins the random draws at `queries`.

        Sampling heads draw by the number of queries since: equal episodes after equal resets are
        equal, and another `queries` gives an episode draws of its own.
        """
        if row is None:
            self._queries = queries
            self._history: list[list[dict]] = [[] for _ in range(self.rows)]
        else:
            self._history[row] = []

    def observe(self, row: int, observation: Mapping[str, Mapping[str, Any]]) -> None:
        """Appends what row `row` senses at this control tick to its history of `window` ticks.

        ``{"images": {view: uint8 [h, w, 3]}, "proprio": {group: [P]}}``, readings in the dataset's
        units. An image may be a JPEG's bytes; it comes to the checkpoint's size as in training.
        None in place of an image or a reading says that the sensor dropped out at this tick.
        UserError for one that is not there at all, or does not fit the checkpoint.
        """
        history = self._history[row]
        history.append(self._standard(self.datasets[row], observation))
        del history[: -self.stream.window]

    def act(
        self, instructions: Sequence[str | np.ndarray], *, masked_views: Sequence[str] = ()
    ) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
        """(actions [rows, C, A] in the datasets' units, the answers {head: {name: [rows, …]}}).

        An instruction is a sentence; or, where the contract asks for an embedding, its numbers [F]
        or [T, F]. Every row must have been observed; `masked_views` hides cameras (the blind
        control). With rows of several action spaces A is the largest, and zeros fill the others; C
        is the shortest chunk.
        """
        batch = self.batch(instructions, masked_views=masked_views)
        self._queries += self.rows
        answers = jax.device_get(self._sample(self._variables, batch))
        return self._actions(answers), answers

    def batch(
        self, instructions: Sequence[str | np.ndarray], *, masked_views: Sequence[str] = ()
    ) -> types.Batch:
        """What the network is shown for these instructions and the histories."""
        self._check_query(instructions, masked_views)
        window = self.stream.window
        real = np.zeros((self.rows, window), bool)
        padded = []
        for row, history in enumerate(self._history):
            real[row, window - len(history) :] = True
            # As data/window.py pads: the first tick repeated, and not real.
            padded.append([history[0]] * (window - len(history)) + history)

        def stack(kind: str, names: Sequence[str]) -> tuple[dict, dict]:
            values, masks = {}, {}
            for name in names:
                pairs = [[tick[kind][name] for tick in row] for row in padded]
                values[name] = np.stack([np.stack([value for value, _ in row]) for row in pairs])
                masks[name] = np.array([[seen for _, seen in row] for row in pairs]) & real
            return values, masks

        images, image_masks = stack("images", tuple(self.stream.image_sizes))
        for view in masked_views:
            image_masks[view] = np.zeros_like(real)
        proprio, proprio_masks = stack("proprio", tuple(self.proprio_sizes))
        names = [space.name for space in self.spaces]
        return types.Batch.make(
            observation=dict(
                images=images,
                image_masks=image_masks,
                proprio=proprio,
                proprio_masks=proprio_masks,
                timestep_mask=real,
            ),
            task=self._task(instructions),
            targets={},
            target_masks={},
            row_id=np.arange(self._queries, self._queries + self.rows, dtype=np.uint32),
            action_space=np.array([names.index(s.name) for s in self.row_spaces], np.int32),
            dataset_key=np.array([self.normalizer.index(k) for k in self.datasets], np.int32),
        )

    def _check_query(self, instructions: Sequence[str], masked_views: Sequence[str]) -> None:
        silent = [row for row, history in enumerate(self._history) if not history]
        if isinstance(instructions, str) or len(instructions) != self.rows or silent:
            count = 1 if isinstance(instructions, str) else len(instructions)
            raise plugin.UserError(
                f"policy.act: got {count} instructions, expected a list of {self.rows}, one per "
                f"row; rows never observed: {silent}. Call observe(row, observation) first."
            )
        for view in masked_views:
            if view not in self.stream.image_sizes:
                known = self.stream.image_sizes
                raise plugin.UserError(plugin.unknown("policy.act: masked view", view, known))

    def _task(self, instructions: Sequence[str]) -> dict:
        """Ids and mask [rows, T] as the data road makes them; no instruction is all padding."""
        if self.text_tokenizer is None:
            read = specs.embedded(self.config.model.tokenizers[n] for n in self.stream.groups)
            return {} if read is None else _embeddings(read, instructions)
        size = self.stream.max_tokens
        encoded = [self.text_tokenizer.instruction(text, size) for text in instructions]
        values = {"language": np.stack([pieces for pieces, _ in encoded])}
        masks = {"language": np.stack([mask for _, mask in encoded])}
        if self._encoder:
            embedded = [self._embed(*(tuple(x.tolist()) for x in row)) for row in encoded]
            values["language_embedding"] = np.stack(embedded)
            masks["language_embedding"] = masks["language"]
        return dict(values=values, masks=masks)

    def _embed(self, ids: tuple[int, ...], mask: tuple[bool, ...]) -> np.ndarray:
        """float32 [T, F] of an instruction; the frozen encoder runs once for each."""
        pieces = np.array([ids], np.int32), np.array([mask], bool)
        return np.asarray(self.model.embed_text(self._variables, self._encoder, *pieces))[0]

    def _standard(self, key: str, observation: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """One tick: {"images": {view: (image, seen)}, "proprio": {group: (normalized, seen)}}."""
        images = {}
        for view, size in self.stream.image_sizes.items():
            image = _entry("observation.images", observation["images"], view)
            if image is None:
                images[view] = np.zeros((*size, 3), np.uint8), False
                continue
            images[view] = self._picture(view, image, size), True
        proprio = {}
        for group, size in self.proprio_sizes.items():
            reading, given = None, observation.get("proprio", {})
            if PROPRIO + group in self.normalizer.entries[key]:  # else: another robot's group
                if group in self._read or group in given:
                    reading = _entry("observation.proprio", given, group)
            proprio[group] = np.zeros(size, np.float32), reading is not None
            if reading is not None:
                numbers = self.normalizer.forward(key, PROPRIO + group, reading)
                if numbers.ndim != 1 or not np.all(np.isfinite(numbers)):
                    raise plugin.UserError(
                        f"observation.proprio.{group}: got {np.asarray(reading)}, expected "
                        "[P] finite numbers; None says that the reading is missing"
                    )
                proprio[group][0][: len(numbers)] = numbers
        return {"images": images, "proprio": proprio}

    def _picture(self, view: str, image: Any, size: tuple[int, int]) -> np.ndarray:
        """uint8 [*size, 3] of a picture or of a JPEG's bytes, as the data road makes it."""
        where = f"observation.images.{view}"
        if isinstance(image, bytes):
            try:
                image = pixels.decode(image, self.stream.resize)
            except plugin.UserError as error:
                raise plugin.UserError(f"{where}: {error}") from error
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise plugin.UserError(
                f"{where}: got {image.dtype} {image.shape}, expected uint8 [height, width, 3] "
                "(red, green, blue) or the bytes of a JPEG"
            )
        return pixels.resize(image, size, self.stream.resize)

    def _actions(self, answers: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
        chunks = []
        for row, (key, space) in enumerate(zip(self.datasets, self.row_spaces, strict=True)):
            head = self._head_of(space, answers)
            chunk = np.asarray(answers[head]["action"][row], np.float32)[:, : space.size]  # [C, A]
            chunks.append(self.normalizer.inverse(key, "action", chunk))
        horizon, size = min(len(c) for c in chunks), max(c.shape[1] for c in chunks)
        return np.stack([np.pad(c[:horizon], ((0, 0), (0, size - c.shape[1]))) for c in chunks])

    def _head_of(self, space: types.ActionSpace, answers: Mapping[str, Mapping]) -> str:
        """The head that answers for an action space: its own, else the one for all of them."""
        acting = [name for name, answer in answers.items() if "action" in answer]
        specs = {name: self.config.model.heads[name].get("action_space") for name in acting}
        for wanted in (space.name, None):
            found = [name for name in acting if specs[name] == wanted]
            if len(found) == 1:
                return found[0]
            if len(found) > 1:
                break
        raise plugin.UserError(
            f"policy: the action space {space.name!r} needs one head that answers for it; heads of "
            f"the stream that answer with an action, and their action_space: {specs or 'none'}"
        )


def _embeddings(tokenizer: specs.Spec, given: Sequence[Any]) -> dict:
    """The task of instructions that were embedded elsewhere, for a tokenizer that reads them."""
    tokens, size = tokenizer["max_tokens"], tokenizer["embedding_size"]
    shape = (size,) if tokens == 1 else (tokens, size)
    rows = []
    for row, embedding in enumerate(given):
        found = None if isinstance(embedding, str) else np.asarray(embedding)
        if found is None or found.shape != shape or found.dtype.kind not in "fi":
            got = repr(embedding) if found is None else f"{found.dtype} {found.shape}"
            made = specs.arguments("tokenizers", tokenizer)["embedded_by"]
            raise plugin.UserError(
                f"policy.act, instruction of row {row}: got {got}, expected the sentence's "
                f"embedding{f' by {made}' if made else ''}, float {list(shape)}; the empty text's "
                "where there is no instruction"
            )
        if not np.isfinite(found).all():
            raise plugin.UserError(f"policy.act, instruction of row {row}: not finite")
        rows.append(found.astype(np.float32))
    masks = np.ones((len(rows), *shape[:-1]), bool)
    return dict(values={"language_embedding": np.stack(rows)}, masks={"language_embedding": masks})


def _entry(where: str, given: Mapping[str, Any], name: str) -> Any:
    if name not in given:
        raise plugin.UserError(plugin.unknown(f"{where}: missing", name, given))
    return given[name]


def _per_row(what: str, asked: str | Sequence[str] | None, rows: int) -> tuple[str | None, ...]:
    if asked is None or isinstance(asked, str):
        return (asked,) * rows
    if len(asked) != rows:
        raise plugin.UserError(f"policy {what}: got {len(asked)} names for {rows} rows")
    return tuple(asked)


def _dataset(normalizer: normalizer_lib.Normalizer, asked: str | None) -> str:
    if not normalizer.keys:
        raise plugin.UserError(
            "policy: the checkpoint has no statistics of any robot data (a pretraining stage?); "
            "train it on a robot first (vla finetune)"
        )
    if asked is None and len(normalizer.keys) == 1:
        return normalizer.keys[0]
    if asked not in normalizer.keys:
        raise plugin.UserError(plugin.unknown("policy dataset key", str(asked), normalizer.keys))
    return asked


def _space(
    normalizer: normalizer_lib.Normalizer,
    spaces: Sequence[types.ActionSpace],
    key: str,
    asked: str | None,
) -> types.ActionSpace:
    """The action space of a dataset's rows: the one asked for, or the only one of its size."""
    size = len(normalizer.entry(key, "action").active)
    fitting = {space.name: space for space in spaces if space.size == size}
    if asked is None and len(fitting) == 1:
        return next(iter(fitting.values()))
    if asked not in fitting:
        where = f"policy action space of {size} numbers, as the dataset {key!r} has"
        raise plugin.UserError(plugin.unknown(where, str(asked), fitting))
    return fitting[asked]


def _proprio_sizes(config, stream, normalizer: normalizer_lib.Normalizer) -> dict[str, int]:
    """Group -> P of the padded reading: the largest of any dataset, and what tokenizers expect."""
    sizes: dict[str, int] = {}
    for fields in normalizer.entries.values():
        for field, entry in fields.items():
            if field.startswith(PROPRIO):
                name = field.removeprefix(PROPRIO)
                sizes[name] = max(sizes.get(name, 0), len(entry.active))
    for spec in (config.model.tokenizers[name] for name in stream.groups):
        groups = specs.readings(spec)
        if len(groups) == 1:
            size = specs.arguments("tokenizers", spec).get("size", 0)
            sizes[groups[0]] = max(sizes.get(groups[0], 0), size)
    return sizes
