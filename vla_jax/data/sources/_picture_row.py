"""Rows of a picture stream: one picture in the newest step, an instruction, and masked targets.

The sources of one stream give rows of one structure (they are stacked), so each names the targets
that its stream has, and a target that a source knows nothing about comes masked out.
"""

from __future__ import annotations

import numpy as np

from vla_jax import plugin

TARGETS = ("point", "region_point", "region_name", "text")


def blank_targets(context, names, regions: int) -> tuple[dict, dict]:
    """(targets, target_masks) of the named targets, all masked out; W, T from `context`, K regions.

    Raises UserError for a name that no picture source knows.
    """
    window = context.window
    blank = {
        "point": np.zeros((window, 2), np.float32),
        "region_point": np.zeros((window, regions, 2), np.float32),
        "region_name": np.zeros((window, regions), np.int32),
        "text": np.zeros(context.max_tokens, np.int32),
    }
    masks = {
        "point": np.zeros(window, np.bool_),
        "region_point": np.zeros((window, regions), np.bool_),
        "region_name": np.zeros((window, regions), np.bool_),
        "text": np.zeros(context.max_tokens, np.bool_),
    }
    for name in names:
        if name not in blank:
            raise plugin.UserError(plugin.unknown(f"{context.name}.targets", name, TARGETS))
    return {name: blank[name] for name in names}, {name: masks[name] for name in names}


def row(context, view: str, image, language, targets: dict, target_masks: dict) -> dict:
    """A row of the vl stream (Batch's nested dicts without the batch axis and row_id).

    Args:
      context: the SourceContext.
      view: the name under which the picture is seen.
      image: uint8 [height, width, 3]; stands in the newest step, earlier steps are masked.
      language: (ids int32 [T], mask bool [T]) of the instruction.
      targets: as in types.py, without the batch axis.
      target_masks: the same names.
    """
    steps = np.zeros(context.window, np.bool_)
    steps[-1] = True
    images = np.zeros((context.window, *image.shape), np.uint8)
    images[-1] = image
    return {
        "observation": {
            "images": {view: images},
            "image_masks": {view: steps},
            "proprio": {},
            "proprio_masks": {},
            "timestep_mask": steps,
        },
        "task": {"values": {"language": language[0]}, "masks": {"language": language[1]}},
        "targets": targets,
        "target_masks": target_masks,
        "action_space": np.int32(-1),
        "dataset_key": np.int32(-1),
    }


def image_size(context, view: str) -> tuple[int, int]:
    """(height, width) of `view` in this stream; UserError when the stream gives no size for it."""
    if view not in context.image_sizes:
        raise plugin.UserError(
            f"{context.name}: stream {context.stream!r} has no image size for view {view!r}; "
            f"got sizes for {sorted(context.image_sizes)}; add it to the stream's image_sizes"
        )
    height, width = context.image_sizes[view]
    return int(height), int(width)
