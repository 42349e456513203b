"""Measure errors and memory of the service over 15 minutes of load. See `--help`."""

from benchmarks.serving.soak import main

if __name__ == "__main__":
    main()
