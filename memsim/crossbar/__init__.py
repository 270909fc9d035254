"""Many memristors as a matrix: encoding, programming, converters and the tiled read."""
