"""The trained model as a function: uint8 images in, class probabilities out.

Runs the ONNX file that training exports, for serving, evaluation and batch prediction. Decodes no
images; imports neither Ray nor MLflow.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from mask_ray.config import MaskRayError
from mask_ray.images.shared_pixels import joined
from mask_ray.models.file_format import (
    CLASS_NAMES_KEY,
    FEATURE_MAP_NAME,
    FEATURES_NAME,
    IMAGE_SIZE_KEY,
    INPUT_NAME,
    OUTPUT_NAME,
    TEMPERATURE_KEY,
)

Images = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]

_LOG_ERRORS_ONLY = 3

# The activations of more pixels do not fit into the caches of a core. Measured at 128 px: 355
# images/s in batches of 32, 401 in batches of 8; at 224 px: 110 in batches of 8, 113 in batches
# of 2.
_MAX_PIXELS_PER_RUN = 8 * 128**2


class ModelFileError(MaskRayError):
    """The file is not a model that mask_ray exported."""


class Predictor:
    """An image classifier loaded from an ONNX file. Safe to call from several threads.

    Args:
        path: ONNX file.
        num_threads: Threads that compute one batch.
        is_shared: Whether `predict` may be called with `on_one_thread`. This needs the memory of
            the weights twice.

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
        """Classify a batch of images.

        Args:
            images: RGB pixels in 0..255 of shape (N, image_size, image_size, 3).
            on_one_thread: Use one thread and leave the other cores to other work, if the
                predictor is shared.

        Returns:
            Shape (N, len(class_names)), each row in 0..1 and summing to 1.

        Raises:
            ValueError: the images have another shape or type.
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
        return _run(session, OUTPUT_NAME, images)

    def warm_up(self, batch_size: int = 1) -> None:
        """Run one batch of black images, so that no request waits for the first allocations."""
        images = np.zeros((batch_size, self.image_size, self.image_size, 3), np.uint8)
        self.predict(images)
        if self._on_one_thread is not self._session:
            self.predict(images, on_one_thread=True)


def predict_together(
    requests: Sequence[tuple[Predictor, Images]], *, on_one_thread: bool = False
) -> list[Probabilities | Exception]:
    """Classify single images, with one batch for each predictor.

    Args:
        requests: Pairs of a predictor and pixels of shape (image_size, image_size, 3).
        on_one_thread: See `Predictor.predict`.

    Returns:
        For each request in order: probabilities of shape (classes,), or the error that its
        predictor raised. An error of one predictor does not affect the others' requests.
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
        return list(predictor.predict(joined(images), on_one_thread=on_one_thread))
    except Exception as error:
        return [error] * len(images)


class FeatureExtractor:
    """The backbone alone, loaded from an ONNX file of `onnx_export.backbone_onnx`."""

    def __init__(self, onnx: bytes, num_threads: int = 1) -> None:
        self._session = ort.InferenceSession(
            onnx, sess_options=_options(num_threads), providers=["CPUExecutionProvider"]
        )

    def extract(self, images: Images) -> npt.NDArray[np.float32]:
        """Return features of shape (N, D) of uint8 images of shape (N, S, S, 3)."""
        return _run(self._session, FEATURES_NAME, images)


class FeatureMaps:
    """The feature map before a classifier's head, from a file of `onnx_edit.with_feature_map`."""

    def __init__(self, onnx: bytes) -> None:
        self._session = ort.InferenceSession(
            onnx, sess_options=_options(1), providers=["CPUExecutionProvider"]
        )

    def extract(self, images: Images) -> npt.NDArray[np.float32]:
        """Return features of shape (N, D, rows, columns) of uint8 images of shape (N, S, S, 3)."""
        return _run(self._session, FEATURE_MAP_NAME, images)


def _run(session: ort.InferenceSession, output: str, images: Images) -> npt.NDArray[np.float32]:
    """Compute an output for all images, a few at a time."""
    batch_size = max(1, _MAX_PIXELS_PER_RUN // (images.shape[1] * images.shape[2]))
    starts = range(0, max(1, len(images)), batch_size)
    parts = [
        session.run([output], {INPUT_NAME: images[start : start + batch_size]})[0]
        for start in starts
    ]
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
    text = _metadata(session, CLASS_NAMES_KEY)
    try:
        names = json.loads(text)
    except json.JSONDecodeError:
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ModelFileError(f"class_names must be a JSON list of strings; got {text}")
    return tuple(names)


def _image_size(session: ort.InferenceSession) -> int:
    text = _metadata(session, IMAGE_SIZE_KEY)
    if not text.isdecimal() or int(text) < 1:
        raise ModelFileError(f"image_size must be a positive integer; got {text}")
    return int(text)


def _temperature(session: ort.InferenceSession) -> float:
    """Return the divisor of the logits; 1 if the file names none."""
    text = session.get_modelmeta().custom_metadata_map.get(TEMPERATURE_KEY, "1")
    try:
        return float(text)
    except ValueError:
        raise ModelFileError(f"temperature must be a number; got {text}") from None


def _check_tensors(session: ort.InferenceSession, image_size: int, num_classes: int) -> None:
    _check_only_tensor(
        "input", session.get_inputs(), INPUT_NAME, "tensor(uint8)", [image_size, image_size, 3]
    )
    _check_only_tensor("output", session.get_outputs(), OUTPUT_NAME, "tensor(float)", [num_classes])


def _check_only_tensor(
    kind: str, tensors: list[ort.NodeArg], name: str, element_type: str, shape: list[int]
) -> None:
    """Require exactly one tensor, with this name, type and shape (N, *shape), N being free."""
    actual = [(t.name, t.type, list(t.shape)) for t in tensors]
    fits = (
        len(actual) == 1
        and actual[0][:2] == (name, element_type)
        and not isinstance(actual[0][2][0], int)
        and actual[0][2][1:] == shape
    )
    if not fits:
        expected = f"{name}: {element_type} of shape {['N', *shape]}"
        received = "; ".join(f"{n}: {t} of shape {s}" for n, t, s in actual)
        raise ModelFileError(f"its {kind} must be {expected}; got {received}")
