"""The study of covert malicious fine-tuning and of what detects it."""
