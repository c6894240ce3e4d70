"""Models in the files of other programs: one module a format, reader and writer side by side."""
