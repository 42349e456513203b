"""Edit exported classifiers: set the temperature of the head, add the feature map as an output.

Works on files, without a framework: the file of `onnx_export.classifier_onnx`, in float32 or
int8, and the `.keras` file of the same model.
"""

import io
import json
import zipfile
from dataclasses import dataclass

import h5py
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mask_ray.models.file_format import FEATURE_MAP_NAME, OUTPUT_NAME, TEMPERATURE_KEY

_KERAS_CONFIG = "config.json"
_KERAS_WEIGHTS = "model.weights.h5"


@dataclass(frozen=True)
class FeatureMapModel:
    """A classifier that also returns the feature map that its head averages.

    Args:
        onnx: The encoded file, with the output `FEATURE_MAP_NAME`, float32 (N, D, rows, columns).
        kernel: Weights of the dense layer, shape (D, classes).
    """

    onnx: bytes
    kernel: NDArray[np.float32]


def with_temperature(encoded: bytes, temperature: float) -> bytes:
    """Divide a classifier's logits by `temperature`, and record it in the metadata.

    The dense layer's weights and bias are divided, so the model is neither larger nor slower.

    Args:
        encoded: ONNX file of a model without a temperature.
        temperature: Divisor above 0. Above 1 it makes probabilities less extreme.

    Returns:
        The new ONNX file.

    Raises:
        ValueError: the model has a temperature already, or no dense layer before its softmax.
    """
    model = onnx.load_from_string(encoded)
    if any(entry.key == TEMPERATURE_KEY for entry in model.metadata_props):
        raise ValueError(f"the model has a {TEMPERATURE_KEY} already")
    dense = _find_dense(model.graph)
    if dense is None:
        raise ValueError("the model has no dense layer before its softmax")
    for tensor in model.graph.initializer:
        if tensor.name in dense.input[1:]:
            scaled = numpy_helper.to_array(tensor) / np.float32(temperature)
            tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    entry = model.metadata_props.add()
    entry.key, entry.value = TEMPERATURE_KEY, repr(float(temperature))
    rewritten: bytes = model.SerializeToString()
    return rewritten


def keras_with_temperature(encoded: bytes, temperature: float) -> bytes:
    """Divide the logits of a `.keras` file: a ZIP archive with the weights as HDF5.

    Args:
        encoded: File of a model from `keras_model.build`.
        temperature: Divisor above 0.

    Returns:
        The new `.keras` file.
    """
    rewritten = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(encoded)) as source,
        zipfile.ZipFile(rewritten, "w") as target,
    ):
        group = _weights_group(json.loads(source.read(_KERAS_CONFIG)), OUTPUT_NAME)
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename == _KERAS_WEIGHTS:
                content = _divide_weights(content, group, temperature)
            target.writestr(entry, content)
    return rewritten.getvalue()


def _weights_group(config: dict[str, object], name: str) -> str:
    """Return the HDF5 group of a dense layer: `dense` for the first, then `dense_1` ..."""
    layers = config["config"]["layers"]  # type: ignore[index]
    dense = [layer["config"]["name"] for layer in layers if layer["class_name"] == "Dense"]
    number = dense.index(name)
    return f"layers/dense_{number}/vars" if number else "layers/dense/vars"


def _divide_weights(weights: bytes, group: str, temperature: float) -> bytes:
    file = io.BytesIO(weights)
    with h5py.File(file, "r+") as content:
        for variable in content[group].values():
            variable[...] = variable[...] / np.float32(temperature)
    return file.getvalue()


def with_feature_map(encoded: bytes) -> FeatureMapModel | None:
    """Add the feature map before the head to a classifier's outputs.

    Args:
        encoded: The ONNX file.

    Returns:
        None if the model does not end in one pooled feature map and a dense layer.
    """
    model = onnx.load_from_string(encoded)
    pools = [node for node in model.graph.node if node.op_type == "GlobalAveragePool"]
    dense = _find_dense(model.graph)
    if len(pools) != 1 or dense is None:
        return None
    name = pools[0].input[0]
    model.graph.node.append(helper.make_node("Identity", [name], [FEATURE_MAP_NAME]))
    model.graph.output.append(
        helper.make_tensor_value_info(FEATURE_MAP_NAME, TensorProto.FLOAT, None)
    )
    (kernel,) = (t for t in model.graph.initializer if t.name == dense.input[1])
    return FeatureMapModel(model.SerializeToString(), numpy_helper.to_array(kernel))


def _find_dense(graph: onnx.GraphProto) -> onnx.NodeProto | None:
    """Find the node that computes the logits from weights stored in the file."""
    producers = {output: node for node in graph.node for output in node.output}
    softmax = producers.get(OUTPUT_NAME)
    if softmax is None or softmax.op_type != "Softmax":
        return None
    dense = producers.get(softmax.input[0])
    stored = {tensor.name for tensor in graph.initializer}
    is_dense = dense is not None and dense.op_type == "Gemm" and set(dense.input[1:]) <= stored
    return dense if is_dense else None
