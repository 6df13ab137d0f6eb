"""Tables from result files, and the run report: one self-contained HTML file."""
