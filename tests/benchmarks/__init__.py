"""Benchmarks, run by `make bench`, and their tests."""
