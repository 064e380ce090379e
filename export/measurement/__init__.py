"""What is measured of bundles: the same scores everywhere they run, and what they cost to run."""
