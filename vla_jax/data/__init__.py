"""Floor 4: the road from disk to batch: episodes, windows and chunks, normalization, mixture,
order, over Grain. Row r of a batch is a pure function of (seed, stream, n). The worker side
imports no jax and no TensorFlow; train, policy, evals and the doors may import it.
"""
