"""Floor 8: demonstrations, closed-loop rollouts, offline metrics and reports, measured from the
simulator's state. Imports any floor below; only the doors import it.
"""
