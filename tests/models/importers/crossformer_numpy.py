"""CrossFormer's forward pass in plain numpy, float64, from its public code; reads foreign names.

rail-berkeley/crossformer, crossformer/model: crossformer_module.py (groups, positions, masks),
components/{tokenizers,vit_encoders,transformer,block_transformer,action_heads}.py, and Octo's
film_conditioning_layer.py, which it took over. No line of vla_jax is used.
"""

import numpy as np

from tests.models.importers import crossformer_files as files

ROOT = files.ROOT
INSIDE = f"{ROOT}/BlockTransformer_0/Transformer_0"


class Reference:
    """The network of config["model"], with the parameters of `files`."""

    def __init__(self, model: dict):
        found = files.parameters(model)
        self.p = {path: value.astype(np.float64) for path, value in found.items()}
        self.model = model

    # ------------------------------------------------------------------------------ tokenizers

    def dense(self, path: str, x: np.ndarray) -> np.ndarray:
        return x @ self.p[f"{path}/kernel"] + self.p[f"{path}/bias"]

    def norm(self, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-6)

    def layer_norm(self, path: str, x: np.ndarray) -> np.ndarray:
        x = self.norm(x, (-1,))
        return x * self.p[f"{path}/scale"] + self.p[f"{path}/bias"]

    def group_norm(self, path: str, x: np.ndarray) -> np.ndarray:
        grouped = x.reshape(*x.shape[:3], 32, -1)
        x = self.norm(grouped, (1, 2, 4)).reshape(x.shape)
        return x * self.p[f"{path}/scale"] + self.p[f"{path}/bias"]

    def conv(self, path: str, x: np.ndarray, stride: int = 1) -> np.ndarray:
        """A convolution of standardized weights, padded as "SAME"."""
        kernel = self.p[f"{path}/kernel"]
        kernel = kernel - kernel.mean((0, 1, 2))
        kernel = kernel / (kernel.std((0, 1, 2)) + 1e-5)
        seen = windows(x, kernel.shape[0], stride, 0.0)  # [N, h, w, C, side, side]
        return np.einsum("nhwcij,ijco->nhwo", seen, kernel, optimize=True)

    def unit(self, path: str, x: np.ndarray, stride: int) -> np.ndarray:
        skip = x
        if f"{path}/conv_proj/kernel" in self.p:
            skip = self.group_norm(f"{path}/gn_proj", self.conv(f"{path}/conv_proj", x, stride))
        y = np.maximum(self.group_norm(f"{path}/gn1", self.conv(f"{path}/conv1", x)), 0)
        y = np.maximum(self.group_norm(f"{path}/gn2", self.conv(f"{path}/conv2", y, stride)), 0)
        return np.maximum(skip + self.group_norm(f"{path}/gn3", self.conv(f"{path}/conv3", y)), 0)

    def resnet(self, path: str, stages: list[int], images, film: np.ndarray | None) -> np.ndarray:
        x = self.conv(f"{path}/conv_root", images / 127.5 - 1.0, 2)
        x = np.maximum(self.group_norm(f"{path}/gn_root", x), 0)
        x = windows(x, 3, 2, -np.inf).max((-2, -1))
        for i, units in enumerate(stages):
            for j in range(units):
                stride = 2 if i and not j else 1
                x = self.unit(f"{path}/block{i + 1}/unit{j + 1}", x, stride)
            if film is not None and i:
                x = self.film(f"{path}/FilmConditioning_{i - 1}", x, film)
        if film is not None and not stages:
            x = self.film(f"{path}/FilmConditioning_0", x, film)
        return x

    def film(self, path: str, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        scale, shift = (self.dense(f"{path}/Dense_{k}", vector) for k in range(2))
        return x * (1 + scale[:, None, None]) + shift[:, None, None]

    def image_tokens(self, name: str, tokenizer: dict, batch: dict) -> np.ndarray:
        seen, task, kwargs = batch["observation"], batch["task"], tokenizer["kwargs"]
        stack = [seen[key] for key in kwargs["obs_stack_keys"]]
        lead = stack[0].shape[:2]
        for key in kwargs["task_stack_keys"]:
            stack.append(np.broadcast_to(task[key][:, None], stack[0].shape))
        images = np.concatenate(stack, -1).astype(np.float64)
        film = None
        if kwargs["task_film_keys"]:
            film = np.repeat(task["language_instruction"].astype(np.float64), lead[1], axis=0)
        encoder = kwargs["encoder"]
        path = f"{ROOT}/observation_tokenizers_{name}/{encoder['name']}_0"
        images = images.reshape(-1, *images.shape[2:])
        tokens = self.resnet(path, files.stages(encoder), images, film)
        return tokens.reshape(*lead, -1, tokens.shape[-1])

    # ------------------------------------------------------------------------------ the trunk

    def groups(self, batch: dict) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """{group: (tokens [B, W, n, D], positions [1, W, n, D], mask [B, W, n])}, in order."""
        seen, made = batch["observation"], {}
        real = seen["timestep_pad_mask"]
        for name, tokenizer in self.model["observation_tokenizers"].items():
            if tokenizer["name"] == "ImageTokenizer":
                tokens = self.image_tokens(name, tokenizer, batch)
                (key,) = tokenizer["kwargs"]["obs_stack_keys"]
                there = seen["pad_mask_dict"][key]
            else:
                tokens = seen[f"proprio_{name}"].astype(np.float64)[..., None]
                there = np.ones(real.shape, bool)
            tokens = self.dense(f"{ROOT}/obs_{name}_projection", tokens)
            mask = np.broadcast_to((real & there)[..., None], tokens.shape[:3])
            made[f"obs_{name}"] = tokens, self.positions(f"obs_{name}", real), mask
        for name, count in self.model["readouts"].items():
            tokens = np.zeros((*real.shape, count, files.WIDTH))
            positions = self.positions(f"readout_{name}", real)
            made[f"readout_{name}"] = tokens, positions, np.ones(tokens.shape[:3], bool)
        return made

    def positions(self, name: str, real: np.ndarray) -> np.ndarray:
        return self.p[f"{ROOT}/{name}_pos_embedding"][:, : real.shape[1]]

    def __call__(self, batch: dict) -> dict[str, np.ndarray]:
        """{group: [B, W, n, D]} after the transformer."""
        groups = self.groups(batch)
        rows, window = batch["observation"]["timestep_pad_mask"].shape
        x, places, there = (
            np.concatenate([parts[i] for parts in groups.values()], axis=2) for i in range(3)
        )
        x = x.reshape(rows, -1, files.WIDTH)
        places, there = places.reshape(1, -1, files.WIDTH), there.reshape(rows, -1)
        sizes = [parts[0].shape[2] for parts in groups.values()]
        step = [name for name, size in zip(groups, sizes) for _ in range(size)]
        sees = np.array(may_see([(t, name) for t in range(window) for name in step]))
        sees = sees[None] & there[:, None]  # [B, L, L]
        for i in range(files.LAYERS):
            x = self.layer(f"{INSIDE}/encoderblock_{i}", x, places, sees)
        x = self.layer_norm(f"{INSIDE}/encoder_norm", x).reshape(rows, window, -1, files.WIDTH)
        parts = np.split(x, np.cumsum(sizes)[:-1], axis=2)
        return dict(zip(groups, parts, strict=True))

    def layer(self, path: str, x, places, sees) -> np.ndarray:
        attention = f"{path}/MultiHeadDotProductAttention_0"
        y = self.layer_norm(f"{path}/LayerNorm_0", x)

        def part(name, given):
            kernel, bias = self.p[f"{attention}/{name}/kernel"], self.p[f"{attention}/{name}/bias"]
            return np.einsum("bld,dnh->bnlh", given, kernel) + bias[:, None]

        query, key, value = part("query", y + places), part("key", y + places), part("value", y)
        scores = np.einsum("bnlh,bnsh->bnls", query / np.sqrt(query.shape[-1]), key)
        scores = np.where(sees[:, None], scores, np.finfo(np.float32).min)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("bnls,bnsh->blnh", weights / weights.sum(-1, keepdims=True), value)
        out, bias = self.p[f"{attention}/out/kernel"], self.p[f"{attention}/out/bias"]
        x = x + np.einsum("blnh,nhd->bld", mixed, out) + bias
        y = self.dense(f"{path}/MlpBlock_0/Dense_0", self.layer_norm(f"{path}/LayerNorm_1", x))
        gelu = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        return x + self.dense(f"{path}/MlpBlock_0/Dense_1", gelu)

    # ------------------------------------------------------------------------------- the heads

    def actions(self, name: str, outputs: dict[str, np.ndarray]) -> np.ndarray:
        """[B, W, h, a]: an action per token of the readout."""
        return self.dense(f"heads_{name}/mean_proj", outputs[f"readout_{name}"])

    def loss(self, name: str, outputs: dict[str, np.ndarray], batch: dict) -> float:
        """A head's own loss."""
        horizon, size = files.ACTIONS[name]
        wanted = batch["action"][:, :, :horizon, :size]
        mask = batch["observation"]["timestep_pad_mask"][:, :, None, None]
        mask = mask & batch["action_pad_mask"][:, :, :horizon, :size]
        mask = mask & batch["action_head_masks"][name][:, None, None, None]
        error = np.abs(self.actions(name, outputs) - wanted)
        return np.mean(error * mask) / np.clip(np.mean(mask), 1e-5, None)

    def total(self, outputs: dict[str, np.ndarray], batch: dict) -> float:
        """What training minimizes: heads weighted by their share of the rows (train.py)."""
        share = {name: np.mean(mask) for name, mask in batch["action_head_masks"].items()}
        return sum(share[name] * self.loss(name, outputs, batch) for name in share)


def windows(x: np.ndarray, side: int, stride: int, fill: float) -> np.ndarray:
    """[N, h', w', C, side, side] of x [N, h, w, C] padded as "SAME"."""
    pads = []
    for length in x.shape[1:3]:
        total = max((-(-length // stride) - 1) * stride + side - length, 0)
        pads.append((total // 2, total - total // 2))
    x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    seen = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))
    return seen[:, ::stride, ::stride]


def may_see(tokens: list[tuple[int, str]]) -> list[list[bool]]:
    """Who attends to whom of (timestep, group): to observations up to now, and its own readout."""
    return [
        [past <= time and (key.startswith("obs_") or key == name) for past, key in tokens]
        for time, name in tokens
    ]
