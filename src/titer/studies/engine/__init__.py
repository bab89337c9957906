"""What every study has in common: a study declares models, questions, measures, claims and its page, and this makes them."""
