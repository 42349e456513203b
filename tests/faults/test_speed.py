"""What has to be fast enough; kept from `make test`, which runs on machines of any speed."""

import time

from mask_ray.images.synthetic import encode


def test_drawing_is_fast_enough_to_feed_training() -> None:
    encode(0)
    started = time.process_time()
    for index in range(100):
        encode(index)
    assert 100 / (time.process_time() - started) > 100
