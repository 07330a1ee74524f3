"""Floor 2: layers that have never heard of robots: linear, attention over a layout, MLP, norms,
positions, the trunk, token embedding and its tied read-out. Every weight matmul of the code
base goes through `nn/linear.py`; floors 3 and above may import it.
"""
