"""Fuzzers: every file that spectail reads, damaged in many ways (``make fuzz``)."""
