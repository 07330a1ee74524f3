"""Arrays of Octo's stand-alone modules as parameters of ours, through the importer's table."""

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax import trees
from vla_jax.models.importers import _params

SEEN, OURS = "octo_transformer/observation_tokenizers_x", "params/tokenizers_x"
# A module's name in Octo -> where its parameters stand in a checkpoint of Octo's, and in ours.
PLACES = {
    **{
        name: (f"{SEEN}/{name}_0/", f"{OURS}/encoder/")
        for name in ("PatchEncoder", "SmallStem16", "SmallStem32", "ViTResnet", "ResNet26FILM")
    },
    "TokenLearner": (f"{SEEN}/TokenLearner_0/", f"{OURS}/learner/"),
    "MAPHead": ("heads_x/map_head/", "params/heads_x/pool/map/"),
}


def variables(module, arrays, net, *inputs):
    """{"params": …} of `net` from {Octo's path in the module: array}; both have the same leaves."""
    theirs, ours = PLACES[module]
    placed, unused = _params.place({theirs + path: leaf for path, leaf in arrays.items()})
    assert not unused
    flat = {f"params/{path.removeprefix(ours)}": leaf for path, leaf in placed.items()}
    shapes = trees.flatten(jax.eval_shape(net.init, jax.random.key(0), *inputs))
    assert {path: leaf.shape for path, leaf in flat.items()} == {
        path: leaf.shape for path, leaf in shapes.items()
    }
    return jax.tree.map(jnp.asarray, trees.unflatten(flat))


def below(arrays, prefix):
    """The entries below a prefix, by the rest of their path."""
    return {path[len(prefix) :]: arrays[path] for path in arrays if path.startswith(prefix)}


def check(name, got, expected, atol=1e-5):
    """Asserts a maximal difference of atol · max(1, max|expected|), and prints it."""
    worst = float(np.abs(np.asarray(got, np.float32) - expected).max())
    bound = atol * max(1.0, float(np.abs(expected).max()))
    print(f"{name}: {worst:.2g} of {bound:.2g}")
    assert got.shape == expected.shape and worst <= bound, (name, worst, bound)
