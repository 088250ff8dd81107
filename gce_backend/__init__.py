"""MLflow project backend that trains on an ephemeral Google Compute Engine instance."""
