"""Functions that return an experiment or a training: the runs that have names."""
