"""How far norms are raised above the gradients, so that they are upper bounds."""
