"""Floor 3: plug-ins that encode images or text for tokenizers, one file each with `make`, `DEBUG`
and `modality`. Imports nn and below; tokenizers and models may import it.
"""
