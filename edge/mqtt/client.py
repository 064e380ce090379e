"""A paho client for a broker's URL: protocol, password, TLS, and no waiting for small messages."""

from __future__ import annotations

import socket
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.tls import tls_context


def new_client(url: BrokerUrl, client_id: str = "", *, kind: type[mqtt.Client] = mqtt.Client) -> mqtt.Client:
    """A client that is not connected yet: MQTT 3.1.1, clean session; user, password and TLS from the environment.

    Args:
        url: the broker.
        client_id: empty lets the broker choose.
        kind: paho's client, or one made of it.

    Raises:
        UsageError: a file of the password, the authority, the certificate or its key cannot be used.
    """
    client = kind(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=True, protocol=mqtt.MQTTv311)
    user = url.user_name()
    if user is not None:
        client.username_pw_set(user, url.password())
    if url.scheme == "mqtts":
        client.tls_set_context(tls_context(url))
    client.on_socket_open = _send_at_once
    return client


def _send_at_once(client: mqtt.Client, userdata: Any, connection: Any) -> None:
    # Without it a small message waits 40 ms for the acknowledgement of the one before.
    if connection.family in {socket.AF_INET, socket.AF_INET6}:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
