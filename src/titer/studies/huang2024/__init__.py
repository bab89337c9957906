"""The study of Vaccine and harmful fine-tuning (arXiv 2402.01109)."""
