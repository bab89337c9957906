"""The engine of all studies: a study declares models, questions, measures, claims and its page; the engine makes them."""
