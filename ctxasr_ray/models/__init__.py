"""A checkpoint -> something that steps or scores."""
