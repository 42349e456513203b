"""Measure how fine-tuning scales over workers, and project it to GPUs. See `--help`."""

from benchmarks.training.scaling import main

if __name__ == "__main__":
    main()
