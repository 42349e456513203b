"""What an operator sees of the endpoint: metrics, access log, request ids, samples."""
