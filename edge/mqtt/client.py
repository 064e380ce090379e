"""A paho client for a broker's URL: protocol, password, TLS, and no waiting for small messages."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge.errors import UsageError
from edge.mqtt.broker_url import CA_FILE_VARIABLE, BrokerUrl


def new_client(url: BrokerUrl, client_id: str = "") -> mqtt.Client:
    """A client that is not connected yet: MQTT 3.1.1, clean session, password and CA file from the environment.

    Raises:
        UsageError: the file of the password or of the certificate authority cannot be used.
    """
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=True, protocol=mqtt.MQTTv311)
    if url.user is not None:
        client.username_pw_set(url.user, url.password())
    if url.scheme == "mqtts":
        ca_file = url.ca_file()
        try:
            client.tls_set(ca_certs=None if ca_file is None else str(ca_file))
        except (ssl.SSLError, OSError) as error:
            raise UsageError(f"{CA_FILE_VARIABLE}={ca_file}: not a PEM file of certificates ({error})") from None
    client.on_socket_open = _send_at_once
    return client


def _send_at_once(client: mqtt.Client, userdata: Any, connection: Any) -> None:
    # Without it a small message waits 40 ms for the acknowledgement of the one before.
    if connection.family in {socket.AF_INET, socket.AF_INET6}:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
