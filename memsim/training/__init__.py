"""Training a recogniser."""
