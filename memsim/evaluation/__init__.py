"""Evaluating a network on simulated chips: systems, runs, results, ablation, sensitivity, sweeps and costs."""
