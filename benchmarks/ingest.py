"""Measure speed and memory of reading and decoding images, against tf.data. See `--help`."""

from benchmarks.data.ingest import main

if __name__ == "__main__":
    main()
