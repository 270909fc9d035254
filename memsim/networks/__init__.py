"""The checkpoint that a name means, and the network that its tensors belong to."""
