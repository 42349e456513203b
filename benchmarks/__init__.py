"""Measured claims: each script compares the project with named peers in one run."""
