"""Comparisons of an imported Octo checkpoint with arrays that Octo itself computed."""
