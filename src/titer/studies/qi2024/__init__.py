"""The risk levels of fine-tuning (arXiv 2310.03693): what is tuned and asked, what is claimed and shown."""
