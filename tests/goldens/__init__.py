"""What the published code gives on known input, and the known input."""
