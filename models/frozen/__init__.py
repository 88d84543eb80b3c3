"""Methods that leave the backbone as it is and read its features: class means, discriminants, regression.
Nothing is trained but, in one of them, a linear layer."""
