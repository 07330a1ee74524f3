"""A small CrossFormer checkpoint as its own code would write it, of random weights.

Names and shapes are those of rail-berkeley/crossformer: crossformer_module.py, tokenizers.py,
vit_encoders.py, transformer.py, action_heads.py, and scripts/configs/pretrain_config.py for the
config, with smaller sizes. Nothing here knows the importer.
"""

import json
import pathlib

import flax.serialization
import numpy as np

STEP = 30
CHECKPOINT = f"{STEP}/default/checkpoint"
WINDOW, LONGEST = 5, 6  # window_size, max_horizon
WIDTH, HEADS, MLP, LAYERS = 32, 4, 48, 2
SENTENCE = 24  # numbers of an embedding; 512 of the Universal Sentence Encoder
PIXELS = dict(primary=64, high=16, nav=16, left_wrist=8, right_wrist=8)
SMALL, ROOT_ALONE = dict(num_layers=[1, 1], width=0.5), dict(num_layers=[], width=0.5)
READINGS = dict(bimanual=14, quadruped=6)
ACTIONS = dict(bimanual=(5, 14), single_arm=(4, 7), nav=(4, 2), quadruped=(1, 12))  # (h, a)
LANGUAGE = ["language_instruction"]
ROOT = "crossformer_transformer"


def spec(module: str, name: str, **kwargs) -> dict:
    return dict(module=f"crossformer.model.components.{module}", name=name, args=[], kwargs=kwargs)


def camera(view: str, goal: bool, film: bool = True, **sizes) -> dict:
    return spec(
        "tokenizers",
        "ImageTokenizer",
        obs_stack_keys=[f"image_{view}"],
        task_stack_keys=[f"image_{view}"] if goal else [],
        task_film_keys=LANGUAGE if film else [],
        encoder=spec("vit_encoders", "ResNet26FILM" if film else "ResNet26", **sizes),
    )


def head(name: str) -> dict:
    horizon, size = ACTIONS[name]
    return spec(
        "action_heads",
        "L1ActionHead",
        action_horizon=horizon,
        action_dim=size,
        num_preds=size,
        pool_strategy="pass",
        readout_key=f"readout_{name}",
        clip_pred=False,
        loss_weight=1.0,
        constrain_loss_dims=True,
    )


def config(tokenizers: tuple[str, ...] | None = None) -> dict:
    """config.json; of some of the tokenizers, where they are named."""
    made = _config()
    table = made["model"]["observation_tokenizers"]
    for name in set(table) - set(tokenizers or table):
        del table[name]
    return made


def _config() -> dict:
    lowdim = dict(module="tokenizers", name="LowdimObsTokenizer")
    return dict(
        window_size=WINDOW,
        skip_norm_keys=["proprio_bimanual"],
        text_processor=dict(
            module="crossformer.data.utils.text_processing",
            name="UniversalSentenceEncoder",
            args=[],
            kwargs={},
        ),
        model=dict(
            observation_tokenizers=dict(
                primary=camera("primary", goal=True, num_layers=[2, 1, 1], width=0.5),
                high=camera("high", goal=True, **SMALL),
                nav=camera("nav", goal=True, film=False, **SMALL),
                left=camera("left_wrist", goal=False, **ROOT_ALONE),
                right=camera("right_wrist", goal=False, **ROOT_ALONE),
                bimanual=spec(**lowdim, obs_keys=["proprio_bimanual"], dropout_rate=0.2),
                quadruped=spec(**lowdim, obs_keys=["proprio_quadruped"]),
            ),
            task_tokenizers={},
            heads={name: head(name) for name in ACTIONS},
            readouts={name: horizon for name, (horizon, _) in ACTIONS.items()},
            token_embedding_size=WIDTH,
            transformer_kwargs=dict(
                attention_dropout_rate=0.0,
                num_layers=LAYERS,
                mlp_dim=MLP,
                num_attention_heads=HEADS,
                dropout_rate=0.1,
                repeat_pos_enc=True,
            ),
            max_horizon=LONGEST,
        ),
    )


def views(tokenizer: dict) -> list[str]:
    kwargs = tokenizer["kwargs"]
    return [*kwargs["obs_stack_keys"], *(f"goal {key}" for key in kwargs["task_stack_keys"])]


def stages(encoder: dict) -> list[int]:
    return encoder["kwargs"].get("num_layers", [2, 2, 2, 2])


# ------------------------------------------------------------------------------------ parameters


def shapes(model: dict, pixels: dict[str, int] = PIXELS) -> dict[str, tuple[int, ...]]:
    """{path: shape}: every parameter that CrossFormer's `init` makes of config["model"]."""
    made = {}
    for name, tokenizer in model["observation_tokenizers"].items():
        if tokenizer["name"] == "ImageTokenizer":
            tokens, features = _encoder(made, name, tokenizer, pixels)
        else:
            tokens, features = READINGS[name], 1
        made |= _dense(f"{ROOT}/obs_{name}_projection", (features,), (WIDTH,))
        made[f"{ROOT}/obs_{name}_pos_embedding"] = (1, LONGEST, tokens, WIDTH)
    for name, tokens in model["readouts"].items():
        made[f"{ROOT}/readout_{name}_pos_embedding"] = (1, LONGEST, tokens, WIDTH)
    inside = f"{ROOT}/BlockTransformer_0/Transformer_0"
    for i in range(LAYERS):
        layer, by_head = f"{inside}/encoderblock_{i}", (HEADS, WIDTH // HEADS)
        attention = f"{layer}/MultiHeadDotProductAttention_0"
        for part in ("query", "key", "value"):
            made |= _dense(f"{attention}/{part}", (WIDTH,), by_head)
        made |= _dense(f"{attention}/out", by_head, (WIDTH,))
        made |= _dense(f"{layer}/MlpBlock_0/Dense_0", (WIDTH,), (MLP,))
        made |= _dense(f"{layer}/MlpBlock_0/Dense_1", (MLP,), (WIDTH,))
        made |= _norm(f"{layer}/LayerNorm_0", WIDTH) | _norm(f"{layer}/LayerNorm_1", WIDTH)
    made |= _norm(f"{inside}/encoder_norm", WIDTH)
    for name, (_, size) in ACTIONS.items():
        made |= _dense(f"heads_{name}/mean_proj", (WIDTH,), (size,))
    return made


def parameters(model: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """{path: float32 array} of `shapes`, random."""
    rng = np.random.default_rng(seed)
    return {path: _drawn(path, shape, rng) for path, shape in shapes(model).items()}


def _drawn(path: str, shape: tuple[int, ...], rng) -> np.ndarray:
    """Numbers of a size at which every parameter matters to what comes out."""
    value, last = rng.normal(size=shape), path.split("/")[-1]
    if last == "scale":
        value = 1 + 0.2 * value
    elif last == "bias":
        value = 0.2 * value
    elif last == "kernel":
        inputs = shape[:2] if "/out/" in path and len(shape) == 3 else shape[:-1]
        inputs = shape[:1] if path.split("/")[-2] in ("query", "key", "value") else inputs
        value = value / np.sqrt(np.prod(inputs))
    return value.astype(np.float32)


def _dense(path: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> dict:
    return {f"{path}/kernel": (*inputs, *outputs), f"{path}/bias": outputs}


def _norm(path: str, features: int) -> dict:
    return {f"{path}/scale": (features,), f"{path}/bias": (features,)}


def _encoder(made: dict, name: str, tokenizer: dict, pixels: dict) -> tuple[int, int]:
    """Adds a ViTResnet's parameters; (its tokens, their features)."""
    encoder = tokenizer["kwargs"]["encoder"]
    path, film = f"{ROOT}/observation_tokenizers_{name}/{encoder['name']}_0", encoder["name"][-4:]
    width = int(64 * encoder["kwargs"].get("width", 1))
    made[f"{path}/conv_root/kernel"] = (7, 7, 3 * len(views(tokenizer)), width)
    made |= _norm(f"{path}/gn_root", width)
    features = width
    for i, units in enumerate(stages(encoder)):
        narrow = width * 2**i
        for j in range(units):
            unit = f"{path}/block{i + 1}/unit{j + 1}"
            if j == 0:
                made[f"{unit}/conv_proj/kernel"] = (1, 1, features, 4 * narrow)
                made |= _norm(f"{unit}/gn_proj", 4 * narrow)
            made[f"{unit}/conv1/kernel"] = (1, 1, features, narrow)
            made[f"{unit}/conv2/kernel"] = (3, 3, narrow, narrow)
            made[f"{unit}/conv3/kernel"] = (1, 1, narrow, 4 * narrow)
            for k, size in ((1, narrow), (2, narrow), (3, 4 * narrow)):
                made |= _norm(f"{unit}/gn{k}", size)
            features = 4 * narrow
        if film == "FILM" and i:
            made |= _film(f"{path}/FilmConditioning_{i - 1}", features)
    if film == "FILM" and not stages(encoder):
        made |= _film(f"{path}/FilmConditioning_0", features)
    side = pixels[tokenizer["kwargs"]["obs_stack_keys"][0].removeprefix("image_")]
    return (side // 2 ** (1 + max(1, len(stages(encoder))))) ** 2, features


def _film(path: str, features: int) -> dict:
    scale, shift = (_dense(f"{path}/Dense_{k}", (SENTENCE,), (features,)) for k in range(2))
    return scale | shift


# -------------------------------------------------------------------------- batches, statistics


def batch(rows: int, seed: int = 1) -> dict:
    """A training batch; row r is of the r-th action space, and lacks the cameras it has not."""
    rng, window = np.random.default_rng(seed), (rows, WINDOW)
    images = {
        f"image_{view}": rng.integers(0, 256, (*window, side, side, 3), dtype=np.uint8)
        for view, side in PIXELS.items()
    }
    proprio = {
        f"proprio_{name}": rng.normal(size=(*window, size)).astype(np.float32)
        for name, size in READINGS.items()
    }
    goals = {name: image[:, 0][::-1].copy() for name, image in images.items()}
    real = np.arange(WINDOW)[None] >= (np.arange(rows) % 3)[:, None]  # [B, W]
    whose = np.arange(rows) % len(ACTIONS)
    shape = max(h for h, _ in ACTIONS.values()), max(a for _, a in ACTIONS.values())
    padding = rng.random((*window, *shape)) > 0.3
    for row, head_of in enumerate(whose):
        padding[row, ..., list(ACTIONS.values())[head_of][1] :] = False
    seen = dict(primary=(1,), high=(0,), nav=(2,), left_wrist=(0,), right_wrist=(0, 1))
    there = {
        f"image_{view}": np.isin(whose, heads)[:, None] & (rng.random(window) > 0.2)
        for view, heads in seen.items()
    }
    return dict(
        observation=dict(
            **images,
            **proprio,
            timestep=np.tile(np.arange(WINDOW, dtype=np.int32), (rows, 1)),
            timestep_pad_mask=real,
            pad_mask_dict=there | {name: np.ones(window, bool) for name in proprio},
        ),
        task=dict(
            **goals,
            language_instruction=rng.normal(size=(rows, SENTENCE)).astype(np.float32),
            pad_mask_dict={name: np.ones(rows, bool) for name in goals}
            | dict(language_instruction=np.arange(rows) % 2 == 0),
        ),
        action=rng.normal(size=(*window, *shape)).astype(np.float32),
        action_pad_mask=padding,
        action_head_masks={name: whose == i for i, name in enumerate(ACTIONS)},
    )


def statistics() -> dict:
    """Of a data set per action space; only those with readings of the body have theirs."""

    def numbers(size: int, seed: int, **more) -> dict:
        mean = np.random.default_rng(seed).normal(size=size)
        found = dict(mean=mean, std=0.5 + mean**2, min=mean - 3, max=mean + 3, p01=mean - 2)
        return {key: value.tolist() for key, value in (found | dict(p99=mean + 2)).items()} | more

    arm = [True] * 6 + [False]
    return dict(
        aloha_pen_uncap_diverse_dataset=dict(
            action=numbers(14, 0, mask=arm + arm), proprio_bimanual=numbers(14, 1)
        ),
        bridge_dataset=dict(action=numbers(7, 2, mask=arm)),
        omnimimic_gnm_dataset=dict(action=numbers(2, 3, mask=[True] * 2)),
        a1=dict(
            action=numbers(12, 4, mask=[True] * 12),
            proprio_quadruped=numbers(READINGS["quadruped"], 5),
        ),
    )


def nested(flat: dict[str, np.ndarray]) -> dict:
    tree: dict = {}
    for path, value in flat.items():
        *above, last = path.split("/")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    return tree


def write(folder: pathlib.Path, tokenizers: tuple[str, ...] | None = None) -> pathlib.Path:
    """The checkpoint's folder, as save_pretrained leaves it."""
    (folder / CHECKPOINT).parent.mkdir(parents=True)
    described = config(tokenizers)
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics()))
    example, pack = batch(1), flax.serialization.msgpack_serialize
    (folder / "example_batch.msgpack").write_bytes(pack(example))
    (folder / CHECKPOINT).write_bytes(pack(nested(parameters(described["model"]))))
    return folder
