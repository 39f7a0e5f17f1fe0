"""The kinds of judges: what each asks, and how its replies are read. pairwise, verdict and listwise compare responses
(comparing.py asks for both orders and averages), score and rubric mark each response alone (marking.py)."""
