"""Floor 1: robot bodies and their action spaces, one file each, numbers and names only. Imports
the ground alone and no jax, so that data workers and robot clients stay light; any floor above
may import it.
"""
