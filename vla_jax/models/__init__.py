"""Floor 5: assembles tokenizers, trunk and heads into one network, loads parts of checkpoints with
a report. Imports floors 4 and below; train, policy and the doors may
import it.
"""
