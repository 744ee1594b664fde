"""The only package that patches private names of Flower."""
