"""Measure what HorovodTrainer costs a training step, against plain Keras. See `--help`."""

from benchmarks.training.trainer_overhead import main

if __name__ == "__main__":
    main()
