"""Stages as jobs of a Ray cluster that is somewhere else."""
