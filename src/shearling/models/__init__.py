"""Networks, made from a specification."""
