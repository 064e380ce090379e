"""How the device is: what the system tells of temperature, throttling, memory and disk, and how quick the model is."""
