"""Text to token shards, and token shards to batches."""

DEFAULT_VALIDATION_SHARE = 0.05
"""Expected share of documents that `prepare` holds out, where none is given."""
