"""Shoal: train one language model together on many machines, with no server in the middle."""

__version__ = "0.1.0"
