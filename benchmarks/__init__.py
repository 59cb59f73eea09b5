"""Speed and memory, compared with other ways: ``python -m benchmarks NAME``.

The others are the published procedure, LAPACK alone and WeightWatcher.
"""
