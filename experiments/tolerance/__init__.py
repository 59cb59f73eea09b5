"""A few windows in place of all of a dense grid: how many --tolerance takes, and whether alpha keeps the promise."""
