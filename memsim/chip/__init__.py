"""Estimates of a whole chip: its architecture, the placement and schedule of a network on it, energy, time and area."""
