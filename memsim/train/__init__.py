"""Training a CTC recogniser."""
