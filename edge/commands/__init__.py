"""Who may command this device, and what waits to be done."""
