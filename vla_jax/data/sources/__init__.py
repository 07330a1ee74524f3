"""Plug-ins that read one kind of data set in place, one file each with `make` and `DEBUG` (RLDS,
tar shards, collages, synthetic). They give raw rows of numpy by index; TensorFlow, where a
reader needs it, runs in a subprocess of the verb that asks.
"""
