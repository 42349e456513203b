"""Measure ordinary photos beside requests that cost a service much. See `--help`."""

from benchmarks.serving.hostile import main

if __name__ == "__main__":
    main()
