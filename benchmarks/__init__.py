"""Benchmarks: each module at the top is a command that measures a claim and prints a table.

    python -m benchmarks.time_to_accuracy    training to a validation accuracy, against plain Keras
    python -m benchmarks.trainer_overhead    what HorovodTrainer costs a training step
    python -m benchmarks.scaling             fine-tuning over workers
    python -m benchmarks.ingest              reading and decoding, against tf.data
    python -m benchmarks.inspection          inspecting a data set
    python -m benchmarks.serving             requests per second, against other servers
    python -m benchmarks.hostile             ordinary photos beside requests that cost much
    python -m benchmarks.soak                the service under load for a long time
    python -m benchmarks.batch_prediction    classifying many files

Each has `--help`. The code is in the folders, by subject.
"""

import os
from pathlib import Path

# Ray and TensorFlow read these when they are imported.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).parent.parent
