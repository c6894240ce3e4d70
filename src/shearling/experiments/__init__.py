"""Experiments seen as a whole: what a config means, before and after it runs."""
