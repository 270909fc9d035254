"""Checkpoints and their networks: opening a file, finding its network, programming it, reading a mapped one back."""
