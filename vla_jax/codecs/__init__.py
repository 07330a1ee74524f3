"""Floor 1: numbers and words in and out: action conversions, the Normalizer, the text tokenizer,
the action tokenizer. Training and serving call the same functions; no jax in here, so that
workers and clients stay light; any floor above may import it.
"""
