"""Floor 4: simulated worlds with their scripted experts, one file each with `make` and `DEBUG`.

The only floor that imports mujoco and gymnasium; evals and the doors may import it, policies and
models never do. Off-screen OpenGL is set up here, before anything imports mujoco.
"""

import os

os.environ.setdefault("MUJOCO_GL", "osmesa")
os.environ.setdefault("LP_NUM_THREADS", "1")  # one process per core beats llvmpipe's own threads
