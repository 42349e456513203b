"""Measure batch prediction against bare ONNX Runtime, and its peak memory. See `--help`."""

from benchmarks.serving.batch_prediction import main

if __name__ == "__main__":
    main()
