"""Find files whose label is probably wrong, by the simplest form of confident learning.

A logistic regression on frozen ImageNet features is fitted to four fifths of the images and
predicts the last fifth, five times. All images of one picture are in one fifth. Images whose own
label gets a low probability are worth a look. See Northcutt, Jiang and Chuang 2021,
https://doi.org/10.1613/jair.1.12125.
"""

from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, Dataset

from mask_ray import data
from mask_ray.config import DataSettings
from mask_ray.data.inventory import Inventory
from mask_ray.images.decode import decode_resized
from mask_ray.models import onnx_export, pretrained
from mask_ray.models.predictor import FeatureExtractor
from mask_ray.progress import Progress, say

# A file is suspected if its own label gets a probability below this.
SUSPECTED_BELOW = 0.1

_IMAGE_SIZE = 96
_NUM_FOLDS = 5
# Features take 2.5 KB an image in the driver.
_MOST_IMAGES = 200_000


def find(
    dataset: Dataset,
    inventory: Inventory,
    settings: DataSettings,
    backbone_weights: str,
    alpha: float,
) -> list[tuple[int, float]] | None:
    """Find suspected rows of the inventory, by features of the backbone of width `alpha`.

    Returns their indices and the probability of their own label, lowest first. None: without
    weights, or with too many images to hold their features.

    Raises:
        pretrained.WeightsError: the backbone weights cannot be read.
    """
    if backbone_weights == "none":
        return None
    if len(inventory) > _MOST_IMAGES:
        say(f"labels are not checked: {len(inventory)} images are more than {_MOST_IMAGES}")
        return None
    backbone = onnx_export.backbone_onnx(
        pretrained.read(backbone_weights, alpha), image_size=_IMAGE_SIZE, alpha=alpha
    )
    features = _features(dataset, inventory, settings, backbone)
    own = _own_confidence(features, inventory)
    rows = np.argsort(own, kind="stable")
    return [(int(row), float(own[row])) for row in rows if own[row] < SUSPECTED_BELOW]


def _features(
    dataset: Dataset, inventory: Inventory, settings: DataSettings, backbone: bytes
) -> NDArray[np.float16]:
    """Compute features, of shape (n, 1280), in the order of the inventory."""
    extracted = dataset.map_batches(
        _Extractor,
        fn_constructor_args=(ray.put(backbone), settings),
        batch_size=64,
        # Without a core to spare, they take turns with what runs.
        num_cpus=1 if data.spare_cpus() else 0,
        compute=ActorPoolStrategy(size=max(1, int(ray.cluster_resources()["CPU"]) - 1)),
    )
    by_digest: dict[str, NDArray[np.float16]] = {}
    progress = Progress("features", len(inventory))
    for batch in extracted.iter_batches(batch_size=1024, batch_format="numpy"):
        progress.add(len(batch["digest"]))
        by_digest.update(zip(batch["digest"].tolist(), batch["features"], strict=True))
    return np.stack([by_digest[digest] for digest in inventory.hex_digests()])


class _Extractor:
    """Runs the backbone on readable images, on one core of its own."""

    def __init__(self, onnx: Any, settings: DataSettings) -> None:
        # Ray Data passes references as they are.
        self._extractor = FeatureExtractor(ray.get(onnx))
        self._settings = settings

    def __call__(self, batch: data.Batch) -> data.Batch:
        images, digests = [], []
        for encoded in batch["bytes"]:
            try:
                images.append(decode_resized(encoded, _IMAGE_SIZE, self._settings))
            except ValueError:
                continue
            digests.append(data.digest_of(encoded))
        if not images:
            return {"digest": np.zeros(0, str), "features": np.zeros((0, 1280), np.float16)}
        features = self._extractor.extract(np.stack(images)).astype(np.float16)
        return {"digest": np.array(digests, str), "features": features}


def _own_confidence(features: NDArray[np.float16], inventory: Inventory) -> NDArray[np.float64]:
    """Predict the probability of each image's own label with models not fitted to its group."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    own = np.ones(len(inventory))
    labels, rows = inventory.labels, features.astype(np.float32)
    for fitted, predicted in GroupKFold(_NUM_FOLDS).split(rows, labels, inventory.groups()):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
        model.fit(rows[fitted], labels[fitted])
        columns = np.searchsorted(model.classes_, labels[predicted])
        own[predicted] = model.predict_proba(rows[predicted])[np.arange(len(predicted)), columns]
    return own
