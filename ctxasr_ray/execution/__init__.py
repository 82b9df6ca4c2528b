"""steps, shards -> committed tables: what to do, one step on one shard, failures, and the plain loop over all."""
