"""A folder from which mosquitto runs so that no device can speak for another: TLS, passwords, access lists."""
