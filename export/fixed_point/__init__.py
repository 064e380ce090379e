"""Fixed point: number formats, ranges and scales from calibration, quantised graphs."""
