"""Measurements of the node beside its peers; each driver is a program: `python benchmarks/NAME.py [--quick]`.

Not part of the node, and nothing of the node imports them. What they say stands in docs/performance.md.
"""
