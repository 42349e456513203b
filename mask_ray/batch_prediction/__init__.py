"""Classify many files, with one row for each in a table."""
