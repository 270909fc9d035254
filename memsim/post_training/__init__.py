"""Mapping of trained weights to levels: recipes, second moments of inputs, and error feedback."""
