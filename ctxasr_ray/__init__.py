"""Offline evaluation and rescoring of contextual speech recognition on Ray; read schema, then pipeline."""
