"""How far annotators, people and judges, agree; what biases their verdicts; and labels made of several people's."""
