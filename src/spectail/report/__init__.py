"""From results to something to look at: tables, figures, words, and one self-contained HTML page. No torch."""
