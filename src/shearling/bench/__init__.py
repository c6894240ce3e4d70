"""This machine's ceilings, our share of them, and peers side by side."""
