"""The HTTP side of a replica: requests in, answers out."""
