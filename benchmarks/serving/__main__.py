"""Measure requests per second of the service and of other model servers. See `--help`."""

from benchmarks.serving.comparison import main

if __name__ == "__main__":
    main()
