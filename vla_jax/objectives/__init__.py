"""Floor 4: plug-ins that mask and sum the heads' errors into a loss, one file each. They hold no
parameters and never take a mean: the train step divides by counts of the whole global batch.
Built by name from train.
"""
