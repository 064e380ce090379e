"""From journals to numbers, tables and one page: ``summary.json``, ``results.parquet``, ``report.html``."""

from rig.report.summary import Row, Summary, summarise
from rig.report.write import write_report

__all__ = ["Row", "Summary", "summarise", "write_report"]
