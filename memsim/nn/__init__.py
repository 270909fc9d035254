"""Neural-network layers on simulated arrays, their quantised training, and measurements of the networks."""
