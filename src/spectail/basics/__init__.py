"""Small helpers that know nothing of weights or spectra and that every other package may use."""
