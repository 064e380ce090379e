"""Sounds for golden vectors: synthetic, so that a bundle never carries anybody's voice."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_SEED = 20_250_101
_PARTS = 8


def golden_pcm(samples: int, rate_hz: int) -> npt.NDArray[np.int16]:
    """One clip of eight sounds, which reach every part of a front end: loud and faint, tonal and noisy, short.

    One, because golden vectors are a large part of a small bundle as it is.

    Returns:
        int16 (1, samples).
    """
    rng = np.random.default_rng(_SEED)
    part = samples // _PARTS
    sweep, noise, vowel = _sweep(part, rate_hz), rng.standard_normal(part), _vowel(part, rate_hz)
    clicks = np.zeros(part)
    clicks[:: max(1, part // 5)] = 1.0
    rumble = np.cumsum(rng.standard_normal(part))
    rumble -= np.linspace(rumble[0], rumble[-1], part)
    sounds = (
        *(_at(sweep, 0.5), _at(noise, 0.9), _at(vowel, 0.6), _at(clicks, 0.99)),
        *(_at(rumble, 0.3), _at(vowel + 0.1 * noise, 0.15), _at(sweep[::-1], 0.02), _at(noise[::-1], 0.003)),
    )
    clip = np.zeros((1, samples))
    clip[0, : part * _PARTS] = np.concatenate(sounds)
    return np.round(clip * 32767).astype(np.int16)


def _sweep(samples: int, rate_hz: int) -> npt.NDArray[np.float64]:
    frequency_hz = 60.0 * (0.45 * rate_hz / 60.0) ** (np.arange(samples) / samples)
    sweep: npt.NDArray[np.float64] = np.sin(2 * np.pi * np.cumsum(frequency_hz) / rate_hz)
    return sweep


def _vowel(samples: int, rate_hz: int) -> npt.NDArray[np.float64]:
    """Harmonics of a falling pitch under a syllable's envelope: the build of a voiced sound, nobody's voice."""
    share = np.arange(samples) / samples
    pitch = 2 * np.pi * np.cumsum(140.0 - 40.0 * share) / rate_hz
    harmonics = [np.sin(k * pitch) / k * np.exp(-(((k * 120 - 700) / 600) ** 2)) for k in range(1, 25)]
    voiced: npt.NDArray[np.float64] = np.sum(harmonics, axis=0) * np.sin(np.pi * share) ** 2
    return _at(voiced, 1.0)


def _at(sound: npt.NDArray[np.float64], peak: float) -> npt.NDArray[np.float64]:
    scaled: npt.NDArray[np.float64] = sound * (peak / np.max(np.abs(sound)))
    return scaled
