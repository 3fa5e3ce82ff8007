"""What `dtg evaluate` is made of: pairs of maps, figures of each subject, summaries, the space of subjects."""
