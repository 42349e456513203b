"""What a stage hands to the next one, also from what was stored."""

import json
from typing import Any

from mask_ray.config import PipelineSettings, revealed
from mask_ray.pipeline.stages import _Stages

SOURCE = "s3://key:s3cret@bucket/photos"


def test_secrets_are_not_stored_and_come_from_the_settings_again() -> None:
    settings = PipelineSettings(data=["/photos", SOURCE], test_data=SOURCE, deploy=False)
    fetched: dict[str, Any] = {
        "data": settings.data,
        "test_data": settings.test_data,
        "fingerprint": [],
    }
    stored = json.dumps({"fetch": fetched})
    assert "s3cret" not in stored

    given = _Stages(settings)._data_settings(json.loads(stored))

    assert revealed(given["data"]) == f"/photos\n{SOURCE}"
    assert revealed(given["test_data"]) == SOURCE
    assert "s3cret" not in json.dumps(given)
