"""A trained model as others receive it: weights, study and all that a prediction needs, under one digest."""
