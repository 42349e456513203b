"""What an operator sees of the service: metrics, access log, request ids, samples."""
