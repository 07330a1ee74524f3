"""What octo_base_pretrain_web.py and octo_base_cofinetune_oxe.py share: Octo-Base that also writes.

    vl     language (32) │ primary (16 x 16) │ language again │ answer_text (32)
    robot  language (32) │ primary │ wrist (8 x 8) │ language again │ readout_action   twice

The frozen T5 reads what is asked. The head `answer` writes captions and answers, token by token,
over pieces of the same vocabulary; nothing sees what it writes. Below one folder or bucket, `data`:

    captions/*.tar                 WebDataset shards, as img2dataset writes them
    vqa/records.json, vqa/images/  LLaVA-style questions and answers
    oxe/NAME/VERSION/              the data sets of Open X-Embodiment as RLDS
"""

import octo_parts

from vla_jax import config
from vla_jax.data.standardizers import oxe

DATA = "gs://<bucket>"  # a placeholder: whoever opens it is asked for the real one
TOKENS = 32  # pieces of a question, an instruction, an answer
MIXTURE = "oxe_magic_soup"


def build(a):
    """The config without streams: network, optimizer, mesh of a pod."""
    c = config.new()
    c.steps, c.workers = a.steps, a.workers
    c.text_tokenizer, c.text_pieces = f"{a.t5}/spiece.model", octo_parts.PIECES
    c.freeze = (("params/tokenizers_language/encoder/.*", True), (".*", False))
    c.embodiments = bodies()
    c.model.dtype = "bfloat16"
    c.model.max_window = 2
    c.model.trunk = dict(octo_parts.SIZES["base"])
    c.model.shared = dict(text_embedding={})
    c.model.tokenizers = dict(
        language=dict(type="encoded_language", encoder=dict(octo_parts.T5_BASE), max_tokens=TOKENS),
        primary=octo_parts.camera("primary", 256),
        wrist=octo_parts.camera("wrist", 128),
        repeat_language=dict(type="repeat", repeats="language", tokens=TOKENS),
    )
    c.model.readouts = dict(action=1)
    c.model.heads = dict(
        answer=dict(type="language", max_tokens=TOKENS),
        # One head for all arms, as Octo's: 7 numbers each.
        action=dict(type="diffusion", readout="action", diffusion_steps=20),
    )
    c.model.rules = (
        ("answer_text", "answer_text", "causal_position"),
        ("*", "answer_text", "never"),
        ("readout_action", "readout_action", "past_or_now"),
        ("*", "readout_*", "never"),
        ("*", "language", "all"),
        ("language", "*", "never"),
        ("*", "*", "past_or_now"),
    )
    c.optimizer = dict(
        lr=a.lr,
        schedule="rsqrt",
        warmup=2000,
        weight_decay=0.1,
        clip=1.0,
        skip=10.0,  # nobody sits beside it: a broken update is left out and counted
    )
    c.mesh = dict(data=-1, fsdp=8)
    c.checkpoint = dict(every=5000, keep=2)
    c.validation = dict(every=5000, batches=16)
    c.log_every = 100
    return c


def bodies() -> tuple[str, ...]:
    """The embodiments of the mixture's data sets."""
    return tuple(sorted({oxe.ROWS[name].embodiment for name in oxe.MIXTURES[MIXTURE]}))


def web_stream(a, batch_size: int) -> dict:
    """The `vl` stream: half captions, half questions, by next-token prediction."""
    reading = dict(cut=True, crop=0.8, holdout=0.001, bad_samples="skip")
    captions = dict(
        type="image_text",
        path=f"{a.data}/captions/*.tar",
        language="describe the picture",
        access="contiguous",
        **reading,
    )
    vqa = dict(
        type="llava",
        path=f"{a.data}/vqa/records.json",
        images=f"{a.data}/vqa/images",
        text_only="leave_out",
        **reading,
    )
    members = dict(captions=dict(source=captions, weight=0.5), vqa=dict(source=vqa, weight=0.5))
    return dict(
        batch_size=batch_size,
        max_tokens=TOKENS,
        groups=("language", "primary", "repeat_language"),
        heads=("answer",),
        objectives=dict(answer=dict(type="next_token", head="answer")),
        image_sizes=dict(primary=(256, 256)),
        mixture=members,
        validation=members,
    )


def robot_stream(a, batch_size: int) -> dict:
    """The `robot` stream: the named mixture, each data set as large as it is times its weight."""
    settings = octo_parts.stream(a)
    bridge = dict(settings["mixture"]["bridge"]["source"])
    reading = {k: v for k, v in bridge.items() if k not in ("type", "path", "standardizer")}
    # A door was filmed from the wrist alone.
    reading |= dict(optional_views=("primary", "wrist"), access="contiguous", bad_samples="skip")
    soup = dict(named=MIXTURE, root=f"{a.data}/oxe", holdout=0.005, **reading)
    return settings | dict(
        batch_size=batch_size,
        max_tokens=TOKENS,
        mixture=dict(oxe=soup),
        validation=dict(oxe=soup),
    )
