"""Does alpha in windows prune a language model better? Methods x allocations, settings chosen on text of their own."""
