"""What agent and updating process say to each other: a job as one line on its input, stages as lines on its output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from edge.messages import Counter, Rollback, Slot, Update

MAX_LINE_BYTES = 64 << 10


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Patience(_Frozen):
    """How long a download may take and what it must leave free.

    ``timeout_s`` is for each answer and each piece of it; attempts are counted from the last one that brought
    anything; the wait between them doubles up to ``longest_backoff_s``.
    """

    timeout_s: float = Field(20.0, gt=0)
    attempts: int = Field(8, ge=1)
    backoff_s: float = Field(1.0, ge=0)
    longest_backoff_s: float = Field(60.0, ge=0)
    slowest_bytes_per_s: float = Field(200.0, ge=0)
    total_s: float = Field(86_400.0, gt=0)
    redirects: int = Field(3, ge=0)
    reserve_bytes: int = Field(32 << 20, ge=0)
    chunk_bytes: int = Field(64 << 10, ge=1)
    synchronise_bytes: int = Field(4 << 20, ge=1)


class Job(_Frozen):
    """One update or rollback.

    ``folder`` is the device's state folder. The bundle is tried with ``threads``, ``members`` and ``provider`` as the
    agent will run it, ``runs`` times; the 99th percentile must be at most ``latency_budget_ms`` (None: any).
    """

    task: Update | Rollback
    folder: Path
    parent_pid: Annotated[int, Field(gt=0)]
    latency_budget_ms: Annotated[float, Field(gt=0)] | None = None
    runs: Annotated[int, Field(ge=1, le=10_000)] = 200
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    members: int | None = None
    provider: str | None = None
    patience: Patience = Patience()


class Stage(_Frozen):
    """How far it came; the last one is ``installed`` or ``failed``."""

    stage: Literal["downloading", "verifying", "testing", "installed", "failed"]
    slot: Slot | None = None
    done_bytes: Counter = 0
    total_bytes: Counter = 0
    detail: str = ""
