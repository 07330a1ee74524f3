"""Octo-Base's trunk on captions and questions about pictures: stage 1 of the pod's job.

vla plan --config configs/octo_base_pretrain_web.py --topology v5e:16x16
vla smoke --config configs/octo_base_pretrain_web.py
vla train --workdir gs://BUCKET/runs/web \
    --config configs/octo_base_pretrain_web.py:data=gs://BUCKET,t5=data/t5-base

Arguments: data, the folder or bucket that octo_web_parts.py describes; t5, a folder with T5-base's
model.safetensors and spiece.model; steps, batch_size, lr, workers. Stage 2 is
octo_base_cofinetune_oxe.py.
"""

import octo_web_parts

from vla_jax import config


def get_config(arg=""):
    """The config as a table of settings."""
    a = config.parse_args(
        arg,
        data=octo_web_parts.DATA,
        t5="data/t5-base",
        steps=100_000,
        batch_size=2048,
        lr=1e-3,
        workers=8,
    )
    c = octo_web_parts.build(a)
    c.init_from = dict(encoders=dict(language=a.t5))
    c.streams.vl = octo_web_parts.web_stream(a, a.batch_size)
    return c
