"""Roof: the doors. Each verb of `vla` parses flags, builds what it needs and calls one function;
configuration turns from ConfigDict into frozen dataclasses here. Imports anything; nothing
imports it.
"""
