"""Who takes part and where the files are."""
