"""From checkpoint to signed bundle: ONNX graph, quantisation, torch twin, parity, packing."""
