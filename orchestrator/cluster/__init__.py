"""Runs and sweeps on Ray: Train workers, the tree actor, Tune trials, jobs. The only subpackage that imports ray."""
