"""Measure inspection against bare decoding, and its peak memory. See `--help`."""

from benchmarks.data.inspection import main

if __name__ == "__main__":
    main()
