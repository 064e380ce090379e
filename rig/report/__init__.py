"""From journals to numbers, tables and one page: ``summary.json``, ``results.parquet``, ``report.html``."""
