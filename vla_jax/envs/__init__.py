"""Floor 4: simulated worlds with their scripted experts, one file each with `make` and `DEBUG`.
The only floor that imports mujoco and gymnasium; evals and the doors may import it, policies
and models never do.
"""
