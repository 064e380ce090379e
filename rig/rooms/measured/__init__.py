"""Measured rooms: responses from WAV, FLAC and SOFA files, and from folders, take the same place as simulated ones."""

from rig.rooms.measured.recordings import Recording, load, load_folder, onset_of, save_folder

__all__ = ["Recording", "load", "load_folder", "onset_of", "save_folder"]
