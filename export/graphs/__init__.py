"""Graphs: from torch to ONNX, of others, with a stochastic ensemble, and what TensorRT takes."""
