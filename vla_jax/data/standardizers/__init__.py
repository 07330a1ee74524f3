"""Tables that map a raw data set's keys to our nouns, one row per data set: cameras, action,
proprio, language, control rate. A row is data, not code; a user adds a file with rows of their
own.
"""
