"""What a person should see before training: a batch of each stream, and who sees whom."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from vla_jax import storage
from vla_jax.data import images as pixels
from vla_jax.nn import visibility
from vla_jax.train import assemble

COLUMNS, SCALE, CAPTION = 8, 2, 14  # pictures per row, enlargement, px of text below each


def write(assembly: assemble.Assembly, workdir: str) -> None:
    """Writes ``batch_STREAM.png`` and ``visibility_STREAM.png`` for every stream into `workdir`."""
    rules = visibility.make(assembly.config.model.rules)
    for name, mix in assembly.mixtures.items():
        rows = [mix.sample(n) for n in range(2 * COLUMNS)]
        drawn = sheet(rows, assembly.text_tokenizer)
        storage.write(storage.join(workdir, f"batch_{name}.png"), pixels.png(drawn))
        seen = visibility.image(assembly.network.layout(name), rules)
        storage.write(storage.join(workdir, f"visibility_{name}.png"), pixels.png(seen))


def sheet(rows: list[dict], text_tokenizer) -> np.ndarray:
    """uint8 [h, w, 3]: the newest image of each row and view, instruction, point as a cross."""
    pictures = []
    for row in rows:
        images = row["observation"]["images"]
        side = max((image.shape[1] for image in images.values()), default=CAPTION) * SCALE
        tile = Image.new("RGB", (side * max(1, len(images)), side + CAPTION), "white")
        draw = ImageDraw.Draw(tile)
        for i, image in enumerate(images.values()):
            tile.paste(Image.fromarray(image[-1]).resize((side, side)), (i * side, 0))
        if "point" in row["targets"] and row["target_masks"]["point"][-1]:
            x, y = (float(v) * side for v in row["targets"]["point"][-1])
            draw.line((x - 6, y, x + 6, y), fill="red")
            draw.line((x, y - 6, x, y + 6), fill="red")
        values, masks = row["task"]["values"], row["task"]["masks"]
        if text_tokenizer is not None and "language" in values:
            text = text_tokenizer.decode(values["language"][masks["language"]].tolist())
            draw.text((2, side + 1), text, fill="black")
        pictures.append(np.asarray(tile))
    pictures += [np.full_like(pictures[0], 255)] * (-len(pictures) % COLUMNS)
    lines = [
        np.concatenate(pictures[i : i + COLUMNS], axis=1) for i in range(0, len(pictures), COLUMNS)
    ]
    return np.concatenate(lines, axis=0)
