"""Benchmarks of reading and inspecting images."""
