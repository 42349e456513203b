"""Requests that cost much, in turn and 32 at a time for two minutes, beside ordinary photos.

Run it with -s to see what was measured.
"""

from pathlib import Path

import psutil
import pytest

from benchmarks.serving.hostile import attack, hostile_requests
from mask_ray.config import ServeSettings
from tests.support import image_files
from tests.support.onnx_files import write_classifier
from tests.support.served import served

SECONDS = 120
REFUSED = {"400", "413", "415", "422", "429"}


@pytest.mark.timeout(1200)
def test_no_replica_is_lost_and_no_ordinary_photo_fails(tmp_path: Path) -> None:
    model = write_classifier(tmp_path / "tiny.onnx", num_products=20)
    photos = [image_files.jpeg(image_files.picture(640, 480, seed=seed)) for seed in range(7)]
    with served(tmp_path, haproxy=True, model_uri=str(model), max_replicas=1) as service:
        before = {process.pid for process in service.replicas}

        def main_replicas() -> list[psutil.Process]:
            return service.replicas

        outcome = attack(service.url, photos, hostile_requests(), SECONDS, main_replicas)
        after = {process.pid for process in service.replicas}

    print(
        f"\n{dict(outcome.ordinary)}, the longest {outcome.longest_s:.2f} s, "
        f"{outcome.per_second:.1f} a second, {outcome.peak_bytes / 2**20:.0f} MiB"
    )
    print(*(f"{key}: {number}" for key, number in sorted(outcome.hostile.items())), sep="\n")
    assert before == after
    assert set(outcome.ordinary) == {"200"}
    # Refused for what they are or what is there already, or given up: none is a server's error.
    answers = {status for _, status in outcome.hostile}
    assert answers <= REFUSED | {"200", "504"}
    assert outcome.peak_bytes <= ServeSettings().replica_memory_bytes
    names = {request.name for request in hostile_requests()}
    assert {name for name, _ in outcome.hostile} == names
