"""The way to the broker: its address, a client for it, the device's link."""
