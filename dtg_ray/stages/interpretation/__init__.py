"""What drives a contrast or a phenotype: targets and people in, attributions and tables out."""
