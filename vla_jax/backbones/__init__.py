"""Floor 3: pretrained vision and text encoders, one file each. Imports nn and below; tokenizers
and models may import it.
"""
