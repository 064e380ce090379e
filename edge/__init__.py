"""The device: what runs behind the microphone, and the words both sides of the bench speak.

Nothing here imports torch, onnx, scipy, pyroomacoustics or another package of earshot.
"""

import os

# onnxruntime's Linux wheels report usage unless this is set before their first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
