"""Floor 1: the one mesh, sharding rules as first-match tables over parameter paths, global arrays
made from the rows a host owns. Knows jax and nothing of models or data; any floor above may
import it.
"""
