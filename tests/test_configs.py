"""Every config builds and is traced at full size, without data: init and train step."""

import pathlib

import jax
import numpy as np
import pytest

from tests.policy import recorded
from vla_jax import config as config_lib
from vla_jax import plugin, trees
from vla_jax.data import members
from vla_jax.data.standardizers import oxe
from vla_jax.evals import rollouts
from vla_jax.models import build, pretrained, synthetic
from vla_jax.parallel import mesh as meshes
from vla_jax.train import assemble, smoke, start, step

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
VOCABULARY = 600  # pieces, as `vla data text-tokenizer` makes by default


class StandIn:
    """A text tokenizer of a given size, in place of a file that a run would make first."""

    pad_id, bos_id, eos_id, vocabulary_size = 0, 2, 3, VOCABULARY

    def encode(self, text):
        return [4 + sum(map(ord, word)) % (VOCABULARY - 4) for word in text.split()]


def with_get_config() -> list[str]:
    return [p.stem for p in sorted(CONFIGS.glob("*.py")) if "def get_config(" in p.read_text()]


@pytest.mark.parametrize("name", with_get_config())
def test_the_docstring_is_the_command_line(name):
    text = (CONFIGS / f"{name}.py").read_text().split('"""')[1]
    assert "\nvla " in text and f"configs/{name}.py" in text


def traced(config: config_lib.TrainConfig, tokenizer) -> set[str]:
    """The names of a train_step's metrics; init and train_step are traced, nothing is computed."""
    assert config_lib.from_json(config_lib.to_json(config)) == config
    network, objectives = smoke.parts(config, tokenizer)
    mesh, size = meshes.make(devices=jax.devices()[:1]), tokenizer.vocabulary_size
    with meshes.use(mesh):
        plan = start.plan(config, network, synthetic.examples(config, size), mesh)
        train_step = step.make_train_step(network.apply, objectives, plan.optimizer, config)
        batches = synthetic.abstract(config, size)
        state, metrics = jax.eval_shape(train_step, plan.abstract, batches)
    assert trees.diff(plan.abstract, state) == ""
    assert {f"{s}/{name}" for s, named in objectives.items() for name in named} <= set(metrics)
    return set(metrics)


@pytest.mark.parametrize(
    "name", [n for n in with_get_config() if n not in ("finetune", "demo_eval")]
)
def test_builds_and_traces_at_full_size(name):
    traced(config_lib.load(str(CONFIGS / f"{name}.py")), StandIn())


@pytest.mark.parametrize("arm, lacking", [("plain", "robot/waypoint"), ("scratch", "vl/pointing")])
def test_arms_of_another_shape_trace_at_full_size(arm, lacking):
    metrics = traced(config_lib.load(f"{CONFIGS / 'demo_cofinetune.py'}:arm={arm}"), StandIn())
    assert "robot/action" in metrics and lacking not in metrics


def test_finetune_builds_and_traces(tmp_path):
    run = recorded.run(tmp_path)
    (tmp_path / "my_arm.py").write_text(recorded.ROBOT)
    given = f"checkpoint={run.workdir},data={run.data},embodiment={tmp_path / 'my_arm.py'}"
    asked = "stats=recompute,action_head=flow,action_horizon=2,window=1,batch_size=16"
    config = config_lib.load(f"{CONFIGS / 'finetune.py'}:{given},{asked}")
    stream = config.streams["robot"]
    assert (stream.batch_size, stream.window, stream.heads) == (16, 1, ("action_xyz_gripper",))
    assert "robot/action" in traced(config, run.assembly.text_tokenizer)


def test_the_evaluation_parses():
    tree = plugin.load_attribute(CONFIGS / "demo_eval.py", "get_config")("")
    parsed = config_lib.parse(rollouts.EvalConfig, tree)
    assert {"cofinetuned", "scratch", "blind", "expert"} <= set(parsed.arms)


def test_finetune_says_what_is_missing():
    with pytest.raises(plugin.UserError, match="finetune.py:checkpoint=… is missing"):
        config_lib.load(str(CONFIGS / "finetune.py"))


@pytest.mark.parametrize(
    "arm", ["scratch", "pretrained_only", "plain", "web_without_B", "same_artist"]
)
def test_arms_of_the_demo_parse(arm):
    config = config_lib.load(f"{CONFIGS / 'demo_cofinetune.py'}:arm={arm}")
    assert ("vl" in config.streams) == (arm not in ("scratch", "pretrained_only"))
    assert ("waypoint" in config.streams["robot"].heads) == (arm != "plain")


def shapes(config: config_lib.TrainConfig):
    """The network's parameters as shapes, and its layout of the stream `robot`."""
    network, _ = smoke.parts(config, StandIn())
    examples = synthetic.examples(config, VOCABULARY)
    found = jax.eval_shape(lambda: network.init(jax.random.key(0), examples))
    return dict(trees.items(found)), network.layout("robot")


@pytest.mark.parametrize("name, count", [("octo_small", 27_042_060), ("octo_base", 92_830_092)])
def test_octo_has_the_published_parameters(name, count):
    found, layout = shapes(config_lib.load(str(CONFIGS / f"{name}.py")))
    assert layout.length == 690
    t5 = [leaf.size for path, leaf in found.items() if "/encoder/" in path and "language" in path]
    assert sum(t5) == 109_628_544  # T5-base's encoder
    assert sum(leaf.size for leaf in found.values()) - sum(t5) == count
    assert found["params/positions_primary/table"].shape[0] == 10


def test_octo_has_the_names_of_an_import(fixtures_dir):
    """The golden checkpoint is Octo 1.5 in small; the importer's table gave each array its name."""
    from vla_jax.models.importers import octo

    imported = octo.translate(octo.read(str(fixtures_dir / "octo_golden" / "tiny" / "ckpt")))
    theirs = {path: leaf.ndim for path, leaf in trees.items(imported.variables)}
    found, _ = shapes(config_lib.load(str(CONFIGS / "octo_small.py")))
    assert {path: len(leaf.shape) for path, leaf in found.items()} == theirs


def test_the_pods_second_stage_takes_all_of_the_first():
    """At debug size; what is fresh is what the robot needs, and nothing of stage 1 goes unused."""
    first, second = (
        smoke.shrink(config_lib.load(str(CONFIGS / f"octo_base_{name}.py")), {})
        for name in ("pretrain_web", "cofinetune_oxe")
    )
    made = []
    for config in (first, second):
        network, _ = smoke.parts(config, StandIn())
        examples = synthetic.examples(config, VOCABULARY)
        abstract = jax.eval_shape(lambda n=network, e=examples: n.init(jax.random.key(0), e))
        made.append(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract))
    fresh = config_lib.load(str(CONFIGS / "octo_base_cofinetune_oxe.py")).init_from.fresh
    _, report = pretrained.match(made[1], made[0], fresh=fresh)
    assert report.unused == () and any("heads_answer" in p for p in report.mapped)
    organs = {path.split("/")[1] for path in report.missing}
    places = {"positions_wrist", "positions_readout_action"}
    assert organs == {"heads_action", "tokenizers_wrist", *places}


def test_the_pods_robots_all_have_seven_numbers():
    config = config_lib.load(f"{CONFIGS / 'octo_base_cofinetune_oxe.py'}:data=/oxe")
    sizes = {s.name: s.size for s in build.action_spaces(build.embodiments(config))}
    soup = members.expand("robot", config.streams["robot"].mixture)
    rows = [oxe.ROWS[m.source["standardizer"]["row"]] for m in soup.values()]
    assert len(rows) == 25 and {sizes[row.action_space] for row in rows} == {7}


@pytest.mark.parametrize(
    "given, open_",
    [
        ("", ["captions.source.path: got the placeholder 'gs://<bucket>/captions/*.tar'",
              "oxe.root", "init_from.checkpoint"]),
        (":data=gs://mine", ["init_from.checkpoint: got the placeholder 'gs://<bucket>/runs/web'"]),
    ],
)  # fmt: skip
def test_what_only_the_user_knows_is_asked_for(given, open_):
    config = config_lib.load(f"{CONFIGS / 'octo_base_cofinetune_oxe.py'}{given}")
    with pytest.raises(plugin.UserError, match="give it as an argument") as found:
        assemble.assemble(config)
    assert all(text in str(found.value) for text in open_)
    assert ("oxe" in str(found.value)) == (not given)


def test_a_filled_config_asks_for_nothing():
    given = "data=gs://mine,pretrain=gs://mine/runs/web"
    config = config_lib.load(f"{CONFIGS / 'octo_base_cofinetune_oxe.py'}:{given}")
    config_lib.check_filled("config", config)
