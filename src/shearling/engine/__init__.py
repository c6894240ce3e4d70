"""The runtime: reading a model's weights, decoding, sampling, chat. Imports no torch."""
