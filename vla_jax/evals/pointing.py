"""Where an image-text stream points to, asked of a checkpoint that may never have seen a robot.

`Policy` drives robots and needs an action head; a stage-1 checkpoint has none. The pointing
accuracies of the report are asked here: of held-out collages, and of rendered scenes that the
checkpoint never saw.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from vla_jax import plugin, types
from vla_jax.codecs import normalizer as normalizer_lib
from vla_jax.codecs import text_tokenizer as text_tokenizer_lib
from vla_jax.data import members
from vla_jax.models import build
from vla_jax.train import checkpoint, keys


class Pointer:
    """The pointing answer of one stream of a checkpoint, for a picture and a text."""

    def __init__(self, folder: str, stream: str = "vl"):
        """Loads a run's folder; UserError for an unknown stream (not pointing: when asked)."""
        loaded = checkpoint.load(folder)
        config = loaded.config
        if stream not in config.streams:
            raise plugin.UserError(plugin.unknown("pointing stream", stream, config.streams))
        self.stream, self._name, self._seed = config.streams[stream], stream, config.seed
        if not loaded.text_tokenizer:
            raise plugin.UserError(f"{folder}: the checkpoint has no text tokenizer")
        self._tokenizer = text_tokenizer_lib.TextTokenizer(loaded.text_tokenizer)
        normalizer = normalizer_lib.Normalizer.from_json(loaded.normalizer)
        self._model = build.network(
            config,
            spaces=loaded.action_spaces,
            text_tokenizer=self._tokenizer,
            proprio_constants=build.constants(normalizer),
        ).plain()
        self._variables = jax.device_put(loaded.variables, jax.local_devices()[0])
        self._sample = jax.jit(self._answers)

    def point(self, image: np.ndarray, text: str) -> np.ndarray:
        """The point in the picture, fractions [2] (x right, y down); `image` is uint8 [h, w, 3]."""
        batch = self._batch(image, *self._tokenizer.encode_padded(text, self.stream.max_tokens))
        return self._ask(batch)

    def collages(self, count: int, seed: int, names: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
        """(name asked for, whether its picture's centre was nearest) of `count` held-out collages.

        `names`: every name that may be asked for. Held out: the collage source's own test domain,
        whose random numbers no training row uses.
        """
        spec = self._shows("collage")
        context = types.SourceContext(
            name=f"{self._name}/held-out",
            stream=self._name,
            image_sizes=self.stream.image_sizes,
            max_tokens=self.stream.max_tokens,
            text_tokenizer=self._tokenizer,
            names=names,
            train=False,
        )
        wanted = {"targets": ("region_point", "region_name")}  # whichever the training uses
        source = plugin.build("data.sources", {**spec, **wanted}, context)
        for i in range(count):
            rng = np.random.Generator(np.random.Philox(key=np.array([seed, i], np.uint64)))
            row = source.sample(i, rng)
            image = next(iter(row["observation"]["images"].values()))[-1]
            language = (row["task"][kind]["language"] for kind in ("values", "masks"))
            point = self._ask(self._batch(image, *language))
            labelled = row["target_masks"]["region_name"][-1]  # [K], the asked-for picture first
            gaps = np.sum((row["targets"]["region_point"][-1][labelled] - point) ** 2, -1)
            yield names[row["targets"]["region_name"][-1][0]], bool(np.argmin(gaps) == 0)

    def _shows(self, type_: str) -> dict:
        """The stream's first source of a type, in its validation or else in its mixture."""
        known = {}
        for part in ("validation", "mixture"):
            where = f"streams.{self._name}.{part}"
            given = getattr(self.stream, part)
            for name, member in (members.expand(where, given) if given else {}).items():
                known[f"{part}.{name}"] = member.source["type"]
                if member.source["type"] == type_:
                    return dict(member.source)
        told = ", ".join(f"{name}: {kind!r}" for name, kind in known.items())
        raise plugin.UserError(
            f"pointing: stream {self._name!r} has no member that shows {type_!r} pictures, whose "
            f"answers are known; it has {told}; name another stream, or evaluate a run that has one"
        )

    def _answers(self, variables, batch: types.Batch) -> dict:
        # Keys are made inside: op by op they cost more than the network.
        row_keys = {
            name: keys.row_keys(self._seed, f"pointing/{name}", batch.row_id)
            for name in self.stream.heads
        }
        return self._model.sample(variables, batch, self._name, row_keys)

    def _ask(self, batch: types.Batch) -> np.ndarray:
        answers = self._sample(self._variables, batch)
        for answer in answers.values():
            if "point" in answer and "probs" in answer:
                return np.asarray(answer["point"][0])
        raise plugin.UserError(f"stream {self._name!r}: none of its heads {list(answers)} points")

    def _batch(self, image: np.ndarray, ids: np.ndarray, mask: np.ndarray) -> types.Batch:
        real = np.ones((1, 1), bool)
        (view,) = self.stream.image_sizes
        return types.Batch.make(
            observation=dict(images={view: image[None, None]}, timestep_mask=real),
            task=dict(values={"language": ids[None]}, masks={"language": mask[None]}),
            targets={},
            target_masks={},
            row_id=np.zeros(1, np.uint32),
            action_space=np.full(1, -1, np.int32),
            dataset_key=np.full(1, -1, np.int32),
        )
