"""tables <-> the run folder: shards, identity, create-only commit, leases; local disk or S3."""
