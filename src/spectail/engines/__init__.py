"""Where the layers of a run are measured: in this process, or spread over a Ray cluster."""
