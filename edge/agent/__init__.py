"""The running device: sound and commands in, predictions out."""
