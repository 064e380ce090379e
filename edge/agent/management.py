"""Commands that change what the device runs or whom it trusts, and when the change is proved."""

from __future__ import annotations

import logging
from typing import TypeAlias

from nacl.signing import VerifyKey

from edge.agent.updates import Updates
from edge.commands.authority import Authority
from edge.errors import UsageError
from edge.messages import Reply, Rollback, Rotate, Update
from edge.mqtt.link import Link

log = logging.getLogger(__name__)

Request: TypeAlias = Update | Rollback | Rotate
_VERBS: dict[type[Request], str] = {Update: "update", Rollback: "rollback", Rotate: "rotate"}


class Management:
    """Hands such commands on and answers each with what became of it; used by one thread."""

    def __init__(self, *, boot_id: str, updates: Updates, authority: Authority, link: Link) -> None:
        self._boot_id = boot_id
        self._updates = updates
        self._authority = authority
        self._link = link

    def carry_out(self, request: Request) -> None:
        """Begin what is asked, or say in one line why not."""
        try:
            self._begin(request)
        except UsageError as error:
            log.warning("refused: %s", error)
            self._reply(request, ok=False, detail=" ".join(str(error).split())[:500])
        else:
            self._reply(request, ok=True)

    def _begin(self, request: Request) -> None:
        if isinstance(request, Update):
            self._updates.start(request)
        elif isinstance(request, Rollback):
            self._updates.rollback(request)
        else:
            self._updates.rotate(request)
            if request.role == "operator":
                old, new = (VerifyKey(bytes.fromhex(key)) for key in (request.old_key, request.new_key))
                self._authority.exchange(old, new)

    def _reply(self, request: Request, *, ok: bool, detail: str = "") -> None:
        verb = _VERBS[type(request)]
        reply = Reply(device=request.device, boot_id=self._boot_id, verb=verb, ok=ok, detail=detail)
        self._link.publish(reply, "reply")
