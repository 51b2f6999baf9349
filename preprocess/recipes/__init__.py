"""What a data set is: the recipe and its explanation in words."""
