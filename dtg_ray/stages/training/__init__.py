"""How models are fitted: the loop that every worker runs, what it reads, validates and keeps, and who starts it."""
