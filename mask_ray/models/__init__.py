"""The network, its weights, its ONNX files, and what runs them."""
