"""The environment that each platform runs best with: one table, each flag with its reason.

  eval "$(python launch/flags.py gpu)"        before `vla train`; the launchers do it

Flags of XLA change between its versions: tests/launch/test_flags.py starts XLA with those of the
GPU, which refuses flags that it does not know, and libtpu with those of the TPU where it is there.
What one config's programs want of XLA is no machine's matter: `config.compiler` (docs/pods.md).
What stands in the environment already is kept, and wins over the table where both name a flag.
"""

from __future__ import annotations

import os
import shlex
import sys

TABLE: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    "tpu": {
        "LIBTPU_INIT_ARGS": (
            # Collectives of fsdp run beside the matmuls that do not wait for them.
            ("--xla_tpu_enable_async_collective_fusion", "true"),
            ("--xla_tpu_enable_async_collective_fusion_fuse_all_gather", "true"),
            ("--xla_tpu_enable_async_collective_fusion_multiple_steps", "true"),
            ("--xla_tpu_overlap_compute_collective_tc", "true"),
            ("--xla_enable_async_all_gather", "true"),
            # Between slices, gradients are summed while the backward pass goes on.
            ("--xla_tpu_enable_data_parallel_all_reduce_opt", "true"),
            ("--xla_tpu_data_parallel_opt_different_sized_ops", "true"),
        ),
    },
    "gpu": {
        "XLA_FLAGS": (
            # Collectives beside the kernels that do not wait for them.
            ("--xla_gpu_enable_latency_hiding_scheduler", "true"),
            # Fewer and larger collectives: a layer's gradients go together (bytes).
            ("--xla_gpu_all_reduce_combine_threshold_bytes", "134217728"),
            ("--xla_gpu_all_gather_combine_threshold_bytes", "134217728"),
            ("--xla_gpu_reduce_scatter_combine_threshold_bytes", "67108864"),
        ),
        # The program holds nearly all of the memory: what is left is NCCL's and cuDNN's.
        "XLA_PYTHON_CLIENT_MEM_FRACTION": (("", "0.92"),),
    },
    "cpu": {
        # malloc keeps its memory, on huge pages: a third of a train_step (docs/performance.md).
        "GLIBC_TUNABLES": (
            ("glibc.malloc.hugetlb", "1"),
            ("glibc.malloc.mmap_max", "0"),
            ("glibc.malloc.trim_threshold", "17179869184"),
        ),
    },
}
SEPARATORS = {"GLIBC_TUNABLES": ":"}


def environment(platform: str, before: dict[str, str] | None = None) -> dict[str, str]:
    """{variable: value} of a platform, laid under what `before` (os.environ) says."""
    before = dict(os.environ) if before is None else before
    found = {}
    for name, flags in TABLE[platform].items():
        separator, given = SEPARATORS.get(name, " "), before.get(name, "")
        if flags[0][0] == "":
            found[name] = given or flags[0][1]
            continue
        known = {word.partition("=")[0] for word in given.split(separator)}
        ours = [f"{flag}={value}" for flag, value in flags if flag not in known]
        found[name] = separator.join([*ours, *filter(None, [given])])
    return found


def main(argv: list[str] | None = None) -> int:
    """Prints one `export` per variable."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 1 or words[0] not in TABLE:
        known = ", ".join(TABLE)
        print(f"flags.py: got {' '.join(words)!r}, expected one of {known}", file=sys.stderr)
        return 2
    for name, value in environment(words[0]).items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
