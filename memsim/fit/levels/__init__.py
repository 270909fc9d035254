"""A device of kind `levels` from tables of conductances after programming: fit, checks and file."""
