"""Where in a picture a model sees a class: class activation maps.

With global average pooling before one dense layer, a class's score is the mean over places of what
the last feature maps, weighted by the class's column, add up to: Zhou et al. 2016,
https://arxiv.org/abs/1512.04150. The maps are read from the very file that is served.
"""

import numpy as np
import onnx
from matplotlib import colormaps
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image

from mask_ray.predictor import FeatureExtractor, Images

_MAP = "feature_map"
_OPACITY = 0.5


class NoHeatMapsError(Exception):
    """The model does not end in global average pooling and one dense layer."""


class HeatMaps:
    """Draws them for one model.

    Args:
        onnx_model: Whose pooling, dense layer and softmax are its last.

    Raises:
        NoHeatMapsError: it has none.
    """

    def __init__(self, onnx_model: onnx.ModelProto) -> None:
        graph = onnx_model.graph
        pooling = next((n for n in graph.node if n.op_type == "GlobalAveragePool"), None)
        dense = next((n for n in graph.node if n.op_type == "Gemm"), None)
        weights = {each.name: each for each in graph.initializer}
        if pooling is None or dense is None or dense.input[1] not in weights:
            raise NoHeatMapsError
        kernel = numpy_helper.to_array(weights[dense.input[1]])
        # What speaks for all classes alike speaks for none.
        self._kernel = kernel - kernel.mean(axis=1, keepdims=True)
        graph.node.append(helper.make_node("Identity", [pooling.input[0]], [_MAP]))
        shape = ["batch", len(kernel), "rows", "columns"]
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info(_MAP, onnx.TensorProto.FLOAT, shape))
        self._extractor = FeatureExtractor(onnx_model.SerializeToString(), output=_MAP)

    def evidence(self, image: Images, label: int) -> NDArray[np.float32]:
        """How much each place speaks for a class, in 0..1 of the most; 0 where it speaks against.

        Args:
            image: uint8 of shape (S, S, 3).
            label: The class.

        Returns:
            Shape (S / 32, S / 32).
        """
        (features,) = self._extractor.extract(image[None])
        evidence = np.tensordot(self._kernel[:, label], features, 1).clip(min=0)
        return np.asarray(evidence / max(evidence.max(), 1e-9), np.float32)

    def drawn(self, image: Images, label: int) -> Images:
        """The picture, in grey, below the evidence for a class, in colour."""
        height, width, _ = image.shape
        coarse = Image.fromarray(self.evidence(image, label))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)
        colour = colormaps["inferno"](smooth)[..., :3] * 255
        grey = np.asarray(Image.fromarray(image).convert("L"))[..., None]
        return ((1 - _OPACITY) * grey + _OPACITY * colour).astype(np.uint8)
