"""Classify many files into a table with one row for each file."""
