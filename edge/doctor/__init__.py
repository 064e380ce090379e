"""What is wrong with this machine as a device, line by line."""
