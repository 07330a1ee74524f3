"""Floor 7: the trained policy meeting a robot: loads a checkpoint folder alone, keeps history,
executes chunks. Never imports TensorFlow; evals and the doors may import it.
"""
