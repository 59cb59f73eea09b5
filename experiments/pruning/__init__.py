"""Whether alpha in windows prunes a language model better.

Methods x allocations; settings are chosen on text of their own.
"""
