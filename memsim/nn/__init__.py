"""Neural-network layers on simulated arrays, and what is measured about a network to map it."""
