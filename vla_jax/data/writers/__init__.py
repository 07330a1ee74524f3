"""Plug-ins that write episodes in our nouns to a data set on disk, one file each. The only place
beside sources where TensorFlow may be imported, in a subprocess of the verb that needs it.
"""
