"""Plug-ins that record a run's metrics, one file each (JSONL, TensorBoard). The only place that
imports an experiment tracker; the loop sees one small interface.
"""
