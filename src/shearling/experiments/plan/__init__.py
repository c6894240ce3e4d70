"""Choosing a model, its batch and its rate for a budget."""
