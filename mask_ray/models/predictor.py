"""The trained model as a function: uint8 images in, class probabilities out.

Runs the ONNX file that training exports, for serving, evaluation and batch prediction alike. Reads
no images and imports neither Ray nor MLflow.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from mask_ray.config import MaskRayError

Images = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]

_LOG_ERRORS_ONLY = 3

# Activations of more pixels than that leave the caches of a core: 355 images/s of 128 px in batches
# of 32, 401 in batches of 8; 110 of 224 px in batches of 8, 113 in batches of 2.
_PIXELS_TOGETHER = 8 * 128**2


class ModelFileError(MaskRayError):
    """The file is not a model that this package exports."""


class Predictor:
    """An image classifier loaded from an ONNX file. Safe to call from several threads.

    Args:
        path: The file.
        num_threads: For one batch.
        is_shared: Whether some batches are to leave the other cores to other work, by
            `on_one_thread`. That costs the memory of the weights once more.

    Raises:
        ModelFileError: the file cannot be loaded, or is not a uint8 image classifier with its
            class names and image size in its metadata.
    """

    def __init__(self, path: str | Path, num_threads: int = 1, is_shared: bool = False) -> None:
        self._session = _load(Path(path), num_threads)
        splits = is_shared and num_threads > 1
        self._on_one_thread = _load(Path(path), 1) if splits else self._session
        try:
            self.class_names = _class_names(self._session)
            self.image_size = _image_size(self._session)
            self.temperature = _temperature(self._session)
            _check_tensors(self._session, self.image_size, len(self.class_names))
        except ModelFileError as error:
            raise ModelFileError(f"{path} is not a classifier made by mask_ray: {error}") from None

    def predict(self, images: Images, *, on_one_thread: bool = False) -> Probabilities:
        """Classify a batch.

        Args:
            images: RGB pixels in 0..255 of shape (N, image_size, image_size, 3).
            on_one_thread: Leave the other cores to other work, where the predictor is shared.

        Returns:
            Shape (N, len(class_names)), each row in 0..1 and summing to 1.

        Raises:
            ValueError: images of another shape or type.
        """
        expected = (self.image_size, self.image_size, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"images must be uint8 of shape (N, {', '.join(map(str, expected))}); "
                f"got {images.dtype} of shape {images.shape}"
            )
        if len(images) == 0:
            return np.empty((0, len(self.class_names)), np.float32)
        session = self._on_one_thread if on_one_thread else self._session
        return _run(session, "probabilities", images)

    def warm_up(self, batch_size: int = 1) -> None:
        """Run one batch of black images, so that no request pays for the first allocations."""
        images = np.zeros((batch_size, self.image_size, self.image_size, 3), np.uint8)
        self.predict(images)
        if self._on_one_thread is not self._session:
            self.predict(images, on_one_thread=True)


def predict_together(
    requests: Sequence[tuple[Predictor, Images]], *, on_one_thread: bool = False
) -> list[Probabilities | Exception]:
    """Classify single images, those that are for the same predictor in one batch.

    Args:
        requests: A predictor each, and pixels of shape (image_size, image_size, 3) for it.
        on_one_thread: As for `Predictor.predict`.

    Returns:
        In the same order: shape (classes,), or what the request's predictor raised, which
        harms no other's.
    """
    outcomes: list[Probabilities | Exception] = [np.empty(0, np.float32)] * len(requests)
    places = defaultdict(list)
    for place, (predictor, _) in enumerate(requests):
        places[id(predictor)].append(place)
    for together in places.values():
        predictor = requests[together[0]][0]
        images = [requests[place][1] for place in together]
        rows = _rows_or_error(predictor, images, on_one_thread)
        for place, row in zip(together, rows, strict=True):
            outcomes[place] = row
    return outcomes


def _rows_or_error(
    predictor: Predictor, images: Sequence[Images], on_one_thread: bool
) -> list[Probabilities | Exception]:
    try:
        return list(predictor.predict(np.stack(images), on_one_thread=on_one_thread))
    except Exception as error:
        return [error] * len(images)


class FeatureExtractor:
    """The backbone alone, loaded from the ONNX file that `onnx_export.backbone_onnx` makes."""

    def __init__(self, onnx: bytes, num_threads: int = 1) -> None:
        self._session = ort.InferenceSession(
            onnx, sess_options=_options(num_threads), providers=["CPUExecutionProvider"]
        )

    def extract(self, images: Images) -> npt.NDArray[np.float32]:
        """Features of shape (N, D) of uint8 images of shape (N, S, S, 3)."""
        return _run(self._session, "features", images)


class FeatureMaps:
    """What a classifier's head averages, from the file that `onnx_head.with_feature_map` makes."""

    def __init__(self, onnx: bytes) -> None:
        self._session = ort.InferenceSession(
            onnx, sess_options=_options(1), providers=["CPUExecutionProvider"]
        )

    def extract(self, images: Images) -> npt.NDArray[np.float32]:
        """Features of shape (N, D, rows, columns) of uint8 images of shape (N, S, S, 3)."""
        return _run(self._session, "feature_map", images)


def _run(session: ort.InferenceSession, output: str, images: Images) -> npt.NDArray[np.float32]:
    """The output for all images, a few at a time."""
    num_together = max(1, _PIXELS_TOGETHER // (images.shape[1] * images.shape[2]))
    starts = range(0, max(1, len(images)), num_together)
    parts = [session.run([output], {"image": images[at : at + num_together]})[0] for at in starts]
    return np.concatenate(parts, dtype=np.float32)


def _load(path: Path, num_threads: int) -> ort.InferenceSession:
    if not path.is_file():
        raise ModelFileError(f"{path} is not a file")
    try:
        return ort.InferenceSession(
            path, sess_options=_options(num_threads), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors share no public base class
        raise ModelFileError(f"{path} cannot be loaded by ONNX Runtime: {error}") from error


def _options(num_threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _LOG_ERRORS_ONLY
    # Idle threads would otherwise spin, on cores that replicas, decoding and HTTP share.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _metadata(session: ort.InferenceSession, key: str) -> str:
    metadata = session.get_modelmeta().custom_metadata_map
    if key not in metadata:
        raise ModelFileError(f"its metadata lacks {key}")
    return str(metadata[key])


def _class_names(session: ort.InferenceSession) -> tuple[str, ...]:
    text = _metadata(session, "class_names")
    try:
        names = json.loads(text)
    except json.JSONDecodeError:
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ModelFileError(f"class_names must be a JSON list of strings; got {text}")
    return tuple(names)


def _image_size(session: ort.InferenceSession) -> int:
    text = _metadata(session, "image_size")
    if not text.isdecimal() or int(text) < 1:
        raise ModelFileError(f"image_size must be a positive integer; got {text}")
    return int(text)


def _temperature(session: ort.InferenceSession) -> float:
    """What logits are divided by; 1 where the file says nothing of it."""
    text = session.get_modelmeta().custom_metadata_map.get("temperature", "1")
    try:
        return float(text)
    except ValueError:
        raise ModelFileError(f"temperature must be a number; got {text}") from None


def _check_tensors(session: ort.InferenceSession, image_size: int, num_classes: int) -> None:
    _check("input", session.get_inputs(), "image", "tensor(uint8)", [image_size, image_size, 3])
    _check("output", session.get_outputs(), "probabilities", "tensor(float)", [num_classes])


def _check(
    kind: str, tensors: list[ort.NodeArg], name: str, element_type: str, shape: list[int]
) -> None:
    """One tensor of this name, type and shape (N, *shape), with N left open."""
    actual = [(t.name, t.type, list(t.shape)) for t in tensors]
    fits = (
        len(actual) == 1
        and actual[0][:2] == (name, element_type)
        and not isinstance(actual[0][2][0], int)
        and actual[0][2][1:] == shape
    )
    if not fits:
        expected = f"{name}: {element_type} of shape {['N', *shape]}"
        came = "; ".join(f"{n}: {t} of shape {s}" for n, t, s in actual)
        raise ModelFileError(f"its {kind} must be {expected}; got {came}")
