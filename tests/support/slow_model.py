"""A classifier that takes seconds for a red image and no time for any other.

So it is loaded, warmed up and health-checked at once, and only a test's own request waits.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.onnx_files import CLASS_NAMES, IMAGE_SIZE

RED = (255, 0, 0)
# Each takes a core a millisecond or more.
_NUM_PRODUCTS = 1_000
_SIDE = 512


def write_slow_for_red(path: Path) -> Path:
    """Softmax of the mean colour, after thousands of products of matrices if an image is red."""
    shape = ["N", IMAGE_SIZE, IMAGE_SIZE, 3]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats"], ["colours"], axes=[1, 2], keepdims=0),
            *_num_products_of("colours"),
            helper.make_node("Loop", ["num_products", "", "eye"], ["product"], body=_loop_body()),
            helper.make_node("ReduceMean", ["product"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
            helper.make_node("MatMul", ["colours", "weights"], ["sums"]),
            helper.make_node("Add", ["sums", "nothing"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"]),
        ],
        "slow_for_red",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])],
        [
            numpy_helper.from_array(np.eye(_SIDE, dtype=np.float32), "eye"),
            numpy_helper.from_array(np.full((3, 2), 1e-3, np.float32), "weights"),
            numpy_helper.from_array(np.float32(0), "zero"),
            numpy_helper.from_array(np.int64(0), "red_channel"),
            numpy_helper.from_array(np.int64(2), "blue_channel"),
            numpy_helper.from_array(np.float32(200), "much"),
            numpy_helper.from_array(np.int64(_NUM_PRODUCTS), "many"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    metadata = {"class_names": json.dumps(CLASS_NAMES), "image_size": str(IMAGE_SIZE)}
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def _num_products_of(colours: str) -> list[onnx.NodeProto]:
    """`num_products`: `_NUM_PRODUCTS` if any image has far more red than blue, or else 0."""
    return [
        helper.make_node("Gather", [colours, "red_channel"], ["red"], axis=1),
        helper.make_node("Gather", [colours, "blue_channel"], ["blue"], axis=1),
        helper.make_node("Sub", ["red", "blue"], ["redness"]),
        helper.make_node("ReduceMax", ["redness"], ["reddest"], keepdims=0),
        helper.make_node("Greater", ["reddest", "much"], ["is_red"]),
        helper.make_node("Cast", ["is_red"], ["one_if_red"], to=TensorProto.INT64),
        helper.make_node("Mul", ["one_if_red", "many"], ["num_products"]),
    ]


def _loop_body() -> onnx.GraphProto:
    matrix = [_SIDE, _SIDE]
    return helper.make_graph(
        [
            helper.make_node("Identity", ["is_on"], ["stays_on"]),
            helper.make_node("MatMul", ["before", "eye"], ["after"]),
        ],
        "product",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("is_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, matrix),
        ],
        [
            helper.make_tensor_value_info("stays_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, matrix),
        ],
    )
