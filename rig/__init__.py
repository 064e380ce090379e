"""The workstation: plans, sessions, attacks, airs, devices over MQTT and reports."""
