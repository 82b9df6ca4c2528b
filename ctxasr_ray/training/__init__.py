"""tables -> checkpoint."""
