"""The operator: signs commands, so that a device obeys the rig and nobody else who reaches the broker."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Self

from nacl.signing import SigningKey, VerifyKey

from edge.bundle.signing import fingerprint, load_private_key, sign
from edge.messages import Envelope, Message


class Operator:
    """Holds a private key and puts commands under its signature; any thread may seal.

    Counters are the UTC clock in nanoseconds, and grow even where the clock stands still or is set back. Rigs that
    share a key share the device's memory of counters, so their clocks must agree within ten seconds.
    """

    def __init__(self, key: SigningKey) -> None:
        self._key = key
        self._lock = threading.Lock()
        self._counter = 0
        self.fingerprint = fingerprint(key.verify_key)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The operator of a private key file.

        Raises:
            UsageError: missing, readable by others, or not an Ed25519 private key in PEM.
        """
        return cls(load_private_key(path))

    @classmethod
    def ephemeral(cls) -> Self:
        """An operator whose key lives in this process alone, for devices that the rig starts itself."""
        return cls(SigningKey.generate())

    @property
    def public_key(self) -> VerifyKey:
        """What a device is given to obey this operator."""
        return self._key.verify_key

    def seal(self, verb: str, command: Message, boot_id: str) -> Envelope:
        """Put a command to the device it names under a signature that is good for one boot and one use."""
        body = command.to_json().decode()
        with self._lock:
            self._counter = max(time.time_ns(), self._counter + 1)
            counter = self._counter
        unsigned = Envelope(
            device=command.device,
            boot_id=boot_id,
            verb=verb,
            operator=self.fingerprint,
            counter=counter,
            body=body,
            signature="0" * 128,
        )
        return unsigned.model_copy(update={"signature": sign(self._key, unsigned.signed_bytes()).hex()})
