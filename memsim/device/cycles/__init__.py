"""Cells that are known by their switching cycles: Synaptogen."""
