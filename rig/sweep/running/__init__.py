"""Running a sweep: on this machine in one process or several, or on a Dask cluster."""
