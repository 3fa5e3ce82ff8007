"""Ridge regression, permutation tests and reconstruction figures on plain arrays; numpy and scipy only."""
