"""RESULTS, COSTS, transcripts -> markdown, figures, one self-contained HTML page, pandas loaders."""
