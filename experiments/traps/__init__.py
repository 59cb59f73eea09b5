"""Whether traps and the ERG gap show memorised labels and training that went on for too long."""
