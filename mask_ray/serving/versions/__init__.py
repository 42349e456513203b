"""Which model versions a replica answers with."""
