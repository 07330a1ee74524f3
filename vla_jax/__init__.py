"""Train generalist robot policies in JAX and put them on robots."""
