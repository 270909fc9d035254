"""The version of memsim."""

__version__ = "0.2.0"
