"""Octo-Base co-fine-tuned on Open X-Embodiment and web data: stage 2 of the pod's job.

vla plan --config configs/octo_base_cofinetune_oxe.py --topology v5e:16x16
vla smoke --config configs/octo_base_cofinetune_oxe.py
vla train --workdir gs://BUCKET/runs/oxe \
    --config configs/octo_base_cofinetune_oxe.py:data=gs://BUCKET,pretrain=gs://BUCKET/runs/web

Two thirds of a batch are Octo's mixture of 25 data sets, a third is stage 1's stream. Arguments:
data, t5 as in octo_base_pretrain_web.py; pretrain, its workdir; steps, batch_size (of both streams
together), lr, workers.
"""

import octo_web_parts

from vla_jax import config


def get_config(arg=""):
    """The config as a table of settings."""
    a = config.parse_args(
        arg,
        data=octo_web_parts.DATA,
        t5="data/t5-base",
        pretrain=f"{octo_web_parts.DATA}/runs/web",
        steps=300_000,
        batch_size=3072,
        lr=3e-4,
        workers=8,
    )
    c = octo_web_parts.build(a)
    web = a.batch_size // 3
    c.streams.robot = octo_web_parts.robot_stream(a, a.batch_size - web)
    c.streams.vl = octo_web_parts.web_stream(a, web)
    c.init_from = dict(
        checkpoint=a.pretrain,
        fresh=(".*/heads_action/.*", ".*wrist.*", ".*readout_action.*"),
    )
    return c
