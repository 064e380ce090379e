"""Commands about devices that run elsewhere, and the broker between."""
