"""What lets a device be seen by other systems."""
