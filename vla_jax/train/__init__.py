"""Floor 6: train state, step, loop, optimizer groups, checkpoints. Passes batches through unopened
and receives evaluations as hooks, so it never imports policy or evals; those floors and the
doors may import it.
"""
