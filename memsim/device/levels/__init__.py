"""Cells that are programmed to conductances: their errors, what time does to them, and their noise, from a file."""
