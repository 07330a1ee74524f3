"""Collectives counted in HLO text: written by hand, and compiled by XLA."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vla_jax.parallel import census
from vla_jax.parallel import mesh as meshes

SUM = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}
"""
LOOP = """
%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %g = f32[64,16]{1,0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %t = (s32[], f32[8,16]) tuple(%i, %y)
}
%cond (p: (s32[], f32[8,16])) -> pred[] {
  %limit = s32[] constant(12)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}
"""


def entry(line: str) -> str:
    return f"HloModule m\n{SUM}{LOOP}\nENTRY %main (p: f32[2]) -> f32[2] {{\n  %r = {line}\n}}\n"


WHILE = "(s32[], f32[8,16]) while(%p), condition=%cond, body=%body"
TRIPS = ', backend_config={"known_trip_count":{"n":"12"}}'
PAIRS = "replica_groups={{0,1},{2,3}}"
EIGHT = "replica_groups={{0,1,2,3,4,5,6,7}}"
MESH = "replica_groups=mesh['a'=2,'b'=4]"


@pytest.mark.parametrize(
    "line, kind, count, sent",
    [
        # 64 x 16 numbers of 4 bytes arrive over groups of 4, in each of 12 rounds
        (WHILE + TRIPS, "all-gather", 12, 12 * 4096 * 3 / 4),
        (WHILE, "all-gather", 12, 12 * 4096 * 3 / 4),
        (f"(f32[10], bf16[20]) all-reduce(%a, %b), {PAIRS}", "all-reduce", 1, 2 * 80 / 2),
        (f"(f32[2], f32[16]) all-gather-start(%a), {EIGHT}", "all-gather", 1, 64 * 7 / 8),
        (f"f32[4]{{0}} reduce-scatter(%a), {MESH} {{'b'}}", "reduce-scatter", 1, 16 * 3),
        (f"f32[4]{{0}} reduce-scatter(%a), {MESH} {{'a','b'}}", "reduce-scatter", 1, 16 * 7),
        ("u8[9] collective-permute(%a), source_target_pairs={{0,1}}", "collective-permute", 1, 9),
    ],
)
def test_by_hand(line, kind, count, sent):
    assert census.collectives(entry(line), 8) == {kind: {"count": count, "bytes": sent}}


def test_a_loop_of_unknown_length_is_said():
    text = entry("(s32[], f32[8,16]) while(%p), condition=%cond, body=%body").replace("=LT", "=NE")
    found = census.collectives(text, 8)
    assert found["unknown_loops"]["count"] == 1 and found["all-gather"]["count"] == 1


@pytest.mark.mesh
def test_a_scan_counts_its_rounds():
    """A weight sharded over fsdp is gathered (or its product summed) once in every layer."""
    mesh = meshes.make({"fsdp": 8})

    def compiled(depth):
        def run(x, weights):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

        shardings = [
            NamedSharding(mesh, p) for p in (PartitionSpec("fsdp"), PartitionSpec(None, "fsdp"))
        ]
        shapes = [
            jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
            for shape, sharding in zip(((64, 128), (depth, 128, 128)), shardings)
        ]
        out = jax.jit(run, out_shardings=shardings[0]).lower(*shapes).compile()
        return census.collectives(out.as_text(), 8)

    three, nine = compiled(3), compiled(9)
    assert three and "unknown_loops" not in three
    for kind in three:
        assert nine[kind]["count"] == 3 * three[kind]["count"]
        assert nine[kind]["bytes"] == 3 * three[kind]["bytes"]
