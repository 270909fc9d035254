"""Configs in YAML and JSON: reading, checking and merging them, and the files that memsim ships."""
