"""What a run says of itself while it works: `logs` for the lines, `metrics` for Prometheus, `watch` for both."""
