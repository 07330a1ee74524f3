"""Evaluates the card demo's checkpoints in closed loop (the last stage of `make demo`).

vla eval --config configs/demo_eval.py:split=0,out=runs/demo --out runs/demo

Arguments: split; out, the folder with the runs; controls=true takes the arms of `make demo-arms`;
seeds is report, or dev for every look one takes before a choice; share multiplies the episodes.
"""

from vla_jax import config, plugin
from vla_jax.evals import rollouts

# Arms whose checkpoint folder has their name.
DEMO = dict(
    cofinetuned=dict(A=100, B=200, C=100, B_among_A=100),
    scratch=dict(A=100, B=200, C=100),
)
CONTROLS = dict(
    cofinetuned=dict(A=100, B=200, C=100),
    cofinetuned_2=dict(A=100, B=200, C=100),
    cofinetuned_3=dict(A=100, B=200, C=100),
    web_without_B=dict(A=100, B=200, C=100),
    pretrained_only=dict(A=100, B=100, C=100),
    plain=dict(A=100, B=100, C=100),
    plain4=dict(A=100, B=100, C=100),
    same_artist=dict(A=100, B=200, C=100),
)


def get_config(arg=""):
    """The evaluation as a table of settings, see rollouts.EvalConfig."""
    a = config.parse_args(
        arg, split=0, out="runs/demo", controls=False, seeds="report", share=1.0, workers=2
    )

    bases = dict(report=rollouts.REPORT_SEEDS, dev=rollouts.DEV_SEEDS)
    if a.seeds not in bases:
        raise plugin.UserError(plugin.unknown("config argument seeds", a.seeds, bases))

    def episodes(sets):
        return {name: max(1, round(count * a.share)) for name, count in sets.items()}

    arms = {
        name: dict(checkpoint=f"{a.out}/{name}", sets=episodes(sets))
        for name, sets in (CONTROLS if a.controls else DEMO).items()
    }
    if not a.controls:
        arms["blind"] = arms["cofinetuned"] | dict(
            sets=episodes(dict(B=200)), masked_views=("primary",)
        )
        arms["expert"] = dict(policy="expert", sets=episodes(dict(A=40)))
        arms["pretrain"] = dict(
            checkpoint=f"{a.out}/pretrain",
            sets=episodes(dict(A=100, B=200, C=100)),
            stream="vl",
            template="point to the {name}",
            pointing_only=True,
            collages=round(400 * a.share),
        )
    return dict(
        split=a.split,
        sets=rollouts.SETS,
        arms=arms,
        seed_base=bases[a.seeds],
        workers=a.workers,
        record=6,
        record_arm="cofinetuned",
        record_set="B",
    )
