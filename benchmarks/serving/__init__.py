"""Benchmarks of prediction: the HTTP service under load and over time, and batch prediction."""
