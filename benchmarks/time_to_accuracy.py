"""Measure how long training takes to a validation accuracy, against plain Keras. See `--help`."""

from benchmarks.training.time_to_accuracy import main

if __name__ == "__main__":
    main()
