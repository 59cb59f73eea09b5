"""Slow, obvious oracles, written from the formulas: nothing here imports
spectail or copies published code.
"""
