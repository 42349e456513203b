"""Benchmarks of training: speed, overhead, scaling over workers, time to an accuracy."""
