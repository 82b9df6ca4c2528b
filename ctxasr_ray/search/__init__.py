"""models -> N-best: one beam, its in-search fusions."""
