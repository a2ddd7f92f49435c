"""Fine-tuning: data, methods, the run, the report."""
