"""The HTTP side of a replica: reads requests and writes answers."""
