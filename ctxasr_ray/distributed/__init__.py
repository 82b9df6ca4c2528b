"""steps and shards -> committed tables, on a cluster: the only room that imports ray."""
