"""Cells that are programmed to conductances: their error, what time does to them, and their noise, as data of a file."""
