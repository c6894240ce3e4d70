"""Shearling: grow, compare, shear and ship small LLaMA-style language models."""

__version__ = "0.1.0"
