"""Benchmarks, run by `make bench`, and what tests them."""
