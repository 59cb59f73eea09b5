"""From results to figures, words and one self-contained HTML page. Nothing here imports torch."""
