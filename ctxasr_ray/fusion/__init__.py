"""HYPOTHESES and SCORES -> TRANSCRIPTS; the weights between them, fitted exactly on dev -> FITS."""
