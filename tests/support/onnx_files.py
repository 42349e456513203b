"""A tiny classifier in ONNX, made on the spot: every pixel counts in its answer."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASS_NAMES = ("with_mask", "without_mask")
IMAGE_SIZE = 32


def write_classifier(
    path: Path,
    class_names: tuple[str, ...] = CLASS_NAMES,
    image_size: int = IMAGE_SIZE,
    input_type: int = TensorProto.UINT8,
    metadata: dict[str, str] | None = None,
    seed: int = 0,
    scale: float = 1 / 5000,
    num_products: int = 0,
) -> Path:
    """Softmax over random weights of all pixels, in the form that `model.export_onnx` gives.

    With a `scale` of NaN, so are its answers. Each of `num_products`, of two matrices of 512 x 512,
    makes a batch of any size take some 4 ms more.
    """
    num_pixels = image_size * image_size * 3
    weights = np.random.default_rng(seed).normal(size=(num_pixels, len(class_names)))
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["floats"], ["pixels"]),
            helper.make_node("MatMul", ["pixels", "weights"], ["sums"]),
            *_work(num_products),
            helper.make_node("Softmax", ["logits"], ["probabilities"]),
        ],
        "classifier",
        [helper.make_tensor_value_info("image", input_type, ["N", image_size, image_size, 3])],
        [
            helper.make_tensor_value_info(
                "probabilities", TensorProto.FLOAT, ["N", len(class_names)]
            )
        ],
        [
            numpy_helper.from_array((weights * scale).astype(np.float32), "weights"),
            numpy_helper.from_array(np.eye(512, dtype=np.float32), "eye"),
            numpy_helper.from_array(np.zeros(1, np.float32), "nothing"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    if metadata is None:
        metadata = {"class_names": json.dumps(class_names), "image_size": str(image_size)}
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def _work(num_products: int) -> list[onnx.NodeProto]:
    """From `sums` to `logits`, which are the same, by way of products that change nothing."""
    nodes = [
        helper.make_node("ReduceMean", ["sums"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
        helper.make_node("Add", ["eye", "zero"], ["product_0"]),
    ]
    for number in range(num_products):
        factors = [f"product_{number}", "eye"]
        nodes.append(helper.make_node("MatMul", factors, [f"product_{number + 1}"]))
    last = f"product_{num_products}"
    return [
        *nodes,
        helper.make_node("ReduceMean", [last], ["mean_product"], keepdims=0),
        helper.make_node("Mul", ["mean_product", "nothing"], ["still_zero"]),
        helper.make_node("Add", ["sums", "still_zero"], ["logits"]),
    ]
