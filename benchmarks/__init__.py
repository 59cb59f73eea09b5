"""Speed and memory against the published procedure, LAPACK alone and WeightWatcher: ``python -m benchmarks NAME``."""
