"""The compilation of kernels, and the threads that they are divided among."""
