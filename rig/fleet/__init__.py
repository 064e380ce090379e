"""Many devices at once: who is there, what they say, what they are asked to change."""
