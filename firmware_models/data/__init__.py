"""Recorded words and sounds for training and measuring: reading, splitting, caching, fetching, checking.

Nothing here needs torch.
"""

from firmware_models.data.audio import RATE_HZ, WINDOW_SAMPLES, read_clip
from firmware_models.data.clips import Clips, load, load_noises
from firmware_models.data.kind import CHUNK_SAMPLES
from firmware_models.data.layout import COMMANDS, LABELS, SILENCE, SPLITS, UNKNOWN, Skipped

__all__ = [
    "CHUNK_SAMPLES",
    "COMMANDS",
    "LABELS",
    "RATE_HZ",
    "SILENCE",
    "SPLITS",
    "UNKNOWN",
    "WINDOW_SAMPLES",
    "Clips",
    "Skipped",
    "load",
    "load_noises",
    "read_clip",
]
