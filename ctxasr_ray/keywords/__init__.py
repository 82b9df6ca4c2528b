"""phrase lists -> CONTEXT, and how phrases sound."""
