"""Floor 4: plug-ins that read the trunk's readouts and answer (an action chunk, a pointing map,
words), one file each with `make` and `DEBUG`. They return answers and unreduced errors; models
builds them by name and nobody else imports them.
"""
