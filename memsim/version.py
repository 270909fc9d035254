"""The version of memsim."""

__version__ = "0.1.0"
